"""A checkpoint in several releases of transformers: a row for each, and where checks break."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rabbitllm.releases import golden as goldens
from rabbitllm.releases import probe
from rabbitllm.releases.bisection import bisect
from rabbitllm.releases.environments import Environments, UnavailableError
from rabbitllm.releases.golden import Golden
from rabbitllm.releases.selection import MAIN, between, in_order
from rabbitllm.releases.trial import KILLED
from rabbitllm.releases.verdicts import CHECKS, Result, judge


class LostError(ValueError):
    """A process ended without telling anything of the release; the message says how."""


@dataclass(frozen=True)
class Row:
    """A release.

    Attributes:
        release: of transformers.
        results: of the checks; empty where the release could not be installed.
        reason: why it could not, or why its process tells nothing.
        note: what of its environment is not as one would expect.
        day: that whose dependencies the release had; empty for today.
        versions: of packages.
    """

    release: str
    results: Sequence[Result] = ()
    reason: str = ""
    note: str = ""
    day: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """One of "good", "bad" and "not-run"."""
        if not self.results:
            return "not-run"
        return "bad" if any(r.status == "fail" for r in self.results) else "good"

    def of(self, check: str) -> bool | None:
        """Whether a check passes; None where it did not run."""
        found = {result.check: result.status for result in self.results}.get(check, "skip")
        return None if found == "skip" else found == "pass"


@dataclass(frozen=True)
class Break:
    """Two releases between which checks broke.

    Attributes:
        checks: their names.
        good: the last good release.
        bad: the first bad one.
        skipped: releases between the two that could not be measured.
        detail: what is wrong in the bad one, of the first check.
    """

    checks: tuple[str, ...]
    good: str
    bad: str
    skipped: tuple[str, ...]
    detail: str


@dataclass
class Checkup:
    """Checks a checkpoint, release by release; what was measured is not measured again.

    Attributes:
        question: see `rabbitllm.releases.probe.Question`; its folder holds the checkpoint.
        environments: of the releases.
        recipe: see `Golden`.
        golden: what is right; None until a release is good, which gives it.
        say: is told of each row.
        timeout: seconds that a release may take.
    """

    question: probe.Question
    environments: Environments
    recipe: Mapping[str, Any]
    golden: Golden | None
    say: Callable[[Row], None]
    timeout: float = 3600
    rows: dict[str, Row] = field(default_factory=dict)

    def measure(self, release: str) -> Row:
        """The row of a release."""
        if release not in self.rows:
            row = self.rows[release] = self._measured(release)
            self.say(row)
        return self.rows[release]

    def _measured(self, release: str) -> Row:
        try:
            environment = self.environments.make(release)
        except UnavailableError as error:
            return Row(release, reason=str(error))
        right = self.golden.values if self.golden else {}
        asked = beside(self.question, right)
        row = Row(release, note=environment.note, day=environment.day)
        try:
            answer = ask(asked, environment.variables, environment.bin / "python", self.timeout)
        except LostError as error:
            return replace(row, reason=str(error))
        if self.question["weights"] and "made" not in answer["errors"]:
            self._take_weights(Path(self.question["folder"]), release)
        results = judge(answer, self.golden, self.question["dtype"])
        row = replace(row, results=results, versions=answer.get("versions", {}))
        if self.golden is None and row.status == "good":
            self.golden = goldens.make(release, self.recipe, answer)
        return row

    def _take_weights(self, folder: Path, release: str) -> None:
        """Has later releases take the weights that this one made, if it came so far.

        Raises:
            ValueError: they are others than those that the golden values are of.
        """
        if not any(folder.glob("*.safetensors")):
            return
        self.question["weights"] = False
        made = goldens.digest(folder, weights=True)
        if self.golden is None:
            self.recipe = {**self.recipe, "made": made}
        elif self.golden.recipe.get("made", made) != made:
            raise ValueError(
                f"The tiny weights that transformers {release} makes are others than those that "
                f"the golden values of {self.golden.release} are of: begin with that release, or "
                "begin anew: delete the golden file, or name another by --golden."
            )

    def breaks(self, known: Sequence[str]) -> list[Break]:
        """Where checks break, by halving what lies between the rows.

        Args:
            known: all releases that there are.
        """
        found: dict[tuple[str, str], Break] = {}
        for check in CHECKS:
            ordered = [self.rows[release] for release in in_order(self.rows)]
            told = [row for row in ordered if row.of(check) is not None]
            for good, bad in pairwise(told):
                if good.of(check) and not bad.of(check):
                    one = self._first(check, good, bad, known)
                    pair = one.good, one.bad
                    checks = (*found[pair].checks, check) if pair in found else (check,)
                    found[pair] = replace(found.get(pair, one), checks=checks)
        return list(found.values())

    def _first(self, check: str, good: Row, bad: Row, known: Sequence[str]) -> Break:
        last = "9999" if bad.release == MAIN else bad.release
        inside = between(known, good.release, last)
        found = bisect(inside, good, bad, self.measure, lambda row: row.of(check))
        detail = next(result.detail for result in found.bad.results if result.check == check)
        return Break((check,), found.good.release, found.bad.release, found.skipped, detail)


def beside(question: probe.Question, right: Mapping[str, Any]) -> probe.Question:
    """The question, with the prompt and the places that golden values are of."""
    return {**question, "input": right.get("input"), "watched": right.get("watched")}


def ask(
    question: probe.Question, variables: Mapping[str, str], python: Path, timeout: float
) -> dict[str, Any]:
    """What `rabbitllm.releases.probe` answers; of one that died, that it did.

    Args:
        question: of it.
        variables: of its process.
        python: that runs it.
        timeout: seconds that it may take.

    Raises:
        LostError: it took longer, or was killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder, "question.json"), Path(folder, "answer.json")
        asked.write_text(json.dumps(question), "utf-8")
        try:
            done = subprocess.run(
                [python, "-I", probe.__file__, asked, told],
                # Modules of a checkpoint's code are kept by folder, not by what they hold.
                env={**variables, "HF_MODULES_CACHE": str(Path(folder, "modules"))},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise LostError(f"It took longer than {timeout:.0f} s (--timeout).") from None
        if done.returncode == 0:
            answer: dict[str, Any] = json.loads(told.read_text("utf-8"))
            return answer
    if done.returncode == KILLED:
        raise LostError("The process was killed, probably for want of memory: try --shrink.")
    said = done.stderr.strip().splitlines()[-1:] or [""]
    died = f"The process ended with status {done.returncode}. {said[0]}".strip()
    return {"errors": {"model": died, "tokenizer": died}}
