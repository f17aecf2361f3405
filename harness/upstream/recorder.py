"""A plugin of pytest: models of transformers' tests stream, and what becomes of each is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from harness.records.failure import LONGEST_MESSAGE, head
from harness.upstream.results import Budget, Outcome, Test
from harness.upstream.rules import Rules

LAYERS = 4
"""Of the tests' models. They have two, which would stay in the slots that streaming needs."""


class Recorder:
    """Selects tests, streams their models and keeps what becomes of them.

    Args:
        model: whose tests they are.
        rules: which run, and which fail by design.
        budget: for the weights of their models; None leaves them stock's.
        only: names of the tests that run; None means all that the rules let run.

    Attributes:
        tests: what became of each, by name.
        apart: how many do not run.
    """

    def __init__(
        self, model: str, rules: Rules, budget: Budget | None, only: Collection[str] | None = None
    ) -> None:
        self.model, self.rules, self.budget, self.only = model, rules, budget, only
        self.tests: dict[str, Test] = {}
        self.apart = 0
        self._failures: list[str] = []
        self._skipped = False

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Leaves the tests of generating models that are to run."""
        ours = [item for item in items if hasattr(item.cls, "all_generative_model_classes")]
        running = [item for item in ours if self.rules.runs(item.name)]
        self.apart = len(ours) - len(running)
        if self.only is not None:
            running = [item for item in running if key(item) in self.only]
        config.hook.pytest_deselected(items=[item for item in items if item not in running])
        items[:] = running
        # What no test becomes, if the process ends before.
        self.tests = {key(item): Test(name=key(item), outcome="ended") for item in items}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Generator[None, object, object]:
        """Runs a test whose models stream, and keeps what becomes of it."""
        self._failures, self._skipped = [], False
        if self.budget is None:
            result = yield
            self._keep(item, streamed=False)
            return result
        from harness.upstream.standin import Streamer  # needs the engine

        with TemporaryDirectory(prefix="upstream-") as folder:
            streamer = Streamer(self.budget, Path(folder))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(item.cls, "setUp", streaming(item.cls.setUp, streamer))
                result = yield
            self._keep(item, streamed=bool(streamer.streamed_bytes()))
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Generator[None, Any, Any]:
        """Notes what fails in a test, subtests included."""
        report = yield
        if report.failed:
            error = call.excinfo.value
            words = f"{type(error).__name__}: {error}"
            self._failures.append(head(words, LONGEST_MESSAGE).strip())
        self._skipped |= report.skipped and not hasattr(report, "context")
        return report

    def _keep(self, item: Any, *, streamed: bool) -> None:
        name, place = key(item), (self.model, self.budget or "", item.name)
        failure = self._failures[0] if self._failures else ""
        explained = [self.rules.explanation(*place, words) for words in self._failures]
        outcome: Outcome
        if self._failures:
            outcome = "refused" if all(explained) else "failed"
        elif self._skipped:
            outcome = "skipped"
        elif not streamed:
            outcome = "idle"
        else:
            outcome = "unexpected" if self.rules.listed(*place) else "passed"
        why = explained[0] if outcome == "refused" else ""
        self.tests[name] = Test(name=name, outcome=outcome, failure=failure, explained=why)


def key(item: Any) -> str:
    """What a test is called in records: its class and its name."""
    return f"{item.cls.__name__}::{item.name}"


def streaming(set_up: Callable[[Any], None], streamer: Any) -> Callable[[Any], None]:
    """`setUp` of a test class, after which its causal models stream, and no others are left.

    The models have `LAYERS` layers.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    from harness.upstream.standin import stand_in

    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING.values())

    def with_streamed_models(self: Any) -> None:
        set_up(self)
        tester = self.model_tester
        tester.num_hidden_layers = LAYERS
        if kinds := getattr(tester, "layer_types", None):
            tester.layer_types = kinds * (LAYERS // len(kinds))
        self.all_model_classes = tuple(
            stand_in(stock, streamer) for stock in self.all_model_classes if stock in causal
        )

    return with_streamed_models
