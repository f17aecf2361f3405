"""Measure one cell in this process: reference, probes, then every check."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from harness.matrix import Cell
from harness.measuring import checks
from harness.measuring.checkpoints import checkpoint
from harness.measuring.departure import departure
from harness.measuring.diagnosis import diagnose
from harness.measuring.subject import StockError, Subject, compiling, reference_side
from harness.records import OF_STOCK, CheckResult, Measurement, Status
from harness.records.failure import describe, fingerprint

WORST_FIRST: tuple[Status, ...] = (
    "reference-broken",
    "fail",
    "degraded",
    "stock-wrong",
    "stock-changed",
    "unsupported",
    "pass",
    "not-run",
)
"""A cell's status is the first of these that one of its checks has."""
LOADING = "split_and_load"
"""The check without whose model no later one can run."""


def measure(cell: Cell, cache: Path) -> Measurement:
    """What the cell's checks find; nothing that they raise escapes.

    Args:
        cell: what to measure, with the installed transformers.
        cache: folder for checkpoints.
    """
    torch.set_num_threads(1)
    name = cell.architecture.model_class
    if not hasattr(transformers, name):
        message = f"transformers {transformers.__version__} has no {name}"
        return Measurement(status="unsupported", message=message)
    with compiling(cell.device not in cell.backend.uncompiled):
        return run_checks(cell, cache)


def run_checks(cell: Cell, cache: Path) -> Measurement:
    """What the cell's checks find, see `measure`."""
    try:
        with reference_side():
            subject = Subject(cell, checkpoint(cell, cache))
        subject.stock_uncached  # noqa: B018  # before any hook of ours: what fails here is stock's
    except StockError as error:
        return Measurement(status="reference-broken", **vars(describe(blamed(error))))
    results: dict[str, CheckResult] = {}
    tracebacks: dict[str, str] = {}
    for name in cell.checks:
        if LOADING in results and results[LOADING].exception:
            results[name] = CheckResult("not-run", message="the model could not be loaded")
            continue
        results[name], tracebacks[name] = run_check(name, subject)
    measurement = summary(results, tracebacks, subject.probes)
    if is_told(results) or not (why := diagnosis(measurement, subject)):
        return measurement
    # Whatever check saw it first, on whatever backend: the same cause is the same failure.
    return replace(
        measurement,
        message=f"{measurement.message}\nDiagnosis: {why}.",
        fingerprint=fingerprint("", why, "diagnosis"),
    )


def diagnosis(measurement: Measurement, subject: Subject) -> str:
    """Where the side to blame departs first, in a sentence; nothing if that cannot be told."""
    if measurement.status in ("fail", "degraded"):
        return diagnose(subject)
    golden = measurement.checks.get("golden")
    if measurement.status not in OF_STOCK or golden is None or golden.exception:
        return ""
    return departure(subject)


def is_told(results: dict[str, CheckResult]) -> bool:
    """Whether a check that the others rest on says why they fail: nothing is left to diagnose."""
    contract, loading = (results.get(name) for name in ("contract", LOADING))
    return bool((contract and contract.status == "fail") or (loading and loading.exception))


def run_check(name: str, subject: Subject) -> tuple[CheckResult, str]:
    """A check's result, and the traceback if it raised."""
    begun = time.perf_counter()
    try:
        check, sentence = checks.load(name)
        outcome = check(subject)
    except (
        Exception
    ) as error:  # whatever a release or a broken engine raises, even on import, is a result
        failure = describe(blamed(error))
        status: Status = "reference-broken" if isinstance(error, StockError) else "fail"
        message = f"{failure.exception}: {failure.message}"
        result = CheckResult(
            status,
            seconds=time.perf_counter() - begun,
            message=message,
            exception=failure.exception,
            fingerprint=failure.fingerprint,
        )
        return result, failure.traceback
    seconds = time.perf_counter() - begun
    result = CheckResult(outcome.status, outcome.figures, seconds, message=outcome.message)
    if outcome.status in ("pass", "not-run", "unsupported"):
        return result, ""
    message = f"{sentence} ({outcome.message})" if outcome.message else sentence
    mark = fingerprint("", outcome.message, name)
    return replace(result, message=message, fingerprint=mark), ""


def summary(
    results: dict[str, CheckResult], tracebacks: dict[str, str], found: dict[str, Any]
) -> Measurement:
    """The cell's measurement: the worst status, and the first result that has it."""
    status = next(s for s in WORST_FIRST if any(result.status == s for result in results.values()))
    name, first = next(
        (name, result) for name, result in results.items() if result.status == status
    )
    whole = Measurement(status=status, checks=results, probes=found)
    if status == "pass":
        return whole
    return replace(
        whole,
        message=f"{name}: {first.message}{also(name, results)}",
        exception=first.exception,
        fingerprint=first.fingerprint,
        traceback=tracebacks.get(name, ""),
    )


def also(name: str, results: dict[str, CheckResult]) -> str:
    """What golden values say of a release that another check, too, finds broken."""
    found = results.get("golden")
    if name == "golden" or found is None or found.status not in OF_STOCK:
        return ""
    return f"\ngolden: {found.message}"


def blamed(error: BaseException) -> BaseException:
    """What stock transformers raised, behind the exception that says so."""
    cause = error.__cause__
    return cause if isinstance(error, StockError) and cause is not None else error
