"""A sweep: a process of its own for each model type."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from harness.records import provenance
from harness.records.failure import fingerprint
from harness.running.cell import TIME_LIMIT, cause_of_death, innermost
from harness.running.isolation import isolated
from harness.sweep.results import Result
from harness.sweep.rules import Rules
from harness.tables import build, unknown


def causal_types(chosen: Sequence[str] | None = None) -> list[str]:
    """The model types that the installed transformers has a causal model of.

    Args:
        chosen: the only ones wanted.

    Raises:
        ValueError: one of these is none.
    """
    known = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    for name in chosen or ():
        if name not in known:
            raise ValueError(unknown("model type", name, known))
    return [name for name in known if chosen is None or name in chosen]


def sweep(
    types: Sequence[str], rules: Rules, jobs: int, time_limit: float = TIME_LIMIT
) -> Iterator[Result]:
    """Yields the result of each type as it comes, `jobs` at a time, in the order of `types`."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda name: run(name, rules, time_limit), types)


def run(model_type: str, rules: Rules, time_limit: float = TIME_LIMIT) -> Result:
    """The result of one type, whatever its process does."""
    begun = time.monotonic()
    with TemporaryDirectory(prefix="sweep-") as folder:
        ended = isolated(_stream, (model_type, rules, Path(folder)), time_limit)
    if ended.value is not None and ended.exit_code == 0:
        found: dict[str, Any] = ended.value
    else:
        _, exception, message = cause_of_death(ended, time_limit)
        found = {
            **(ended.value or {}),
            "outcome": "fails",
            "message": message,
            "exception": exception,
            "fingerprint": fingerprint(exception, message, innermost(ended.stderr)),
            "traceback": ended.stderr,
        }
    common = {
        "model_type": model_type,
        "release": transformers.__version__,
        "seconds": round(time.monotonic() - begun, 2),
        "engine_hash": provenance.engine_hash(),
        "versions": provenance.versions(),
        "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if found["outcome"] == "fails":
        failure = f"{found['exception']}: {found['message']}"
        common["explained"] = rules.explanation(model_type, failure)
    return build(Result, {**common, **found}, model_type)


def _stream(model_type: str, rules: Rules, folder: Path) -> Any:
    from harness.sweep.measure import stream_type  # in its process, where a failure is its own

    return stream_type(model_type, rules, folder)
