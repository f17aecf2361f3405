"""What stock makes of a family's tokenizer, told apart from what its model does.

The check runs in a model's cell, whose stock it shares. What it finds is no fault of the model: it
becomes a record of its own, as if "tokenizer" were one more backend of the architecture.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from harness.judging.causes import explanation
from harness.records import FAILED, CheckResult, Record

TOKENIZER = "tokenizer"
"""The check, and what the records that are told apart have for a backend."""


def told_apart(records: Iterable[Record]) -> list[Record]:
    """The records without their tokenizers, then the tokenizers' own, the newest of each."""
    models: list[Record] = []
    own: dict[tuple[str, str], Record] = {}
    for record in records:
        result = record.checks.get(TOKENIZER)
        models.append(record if result is None else without(record))
        if result is None or result.status == "not-run":
            continue
        key = record.architecture, record.release
        if key not in own or own[key].time < record.time:
            own[key] = alone(record, result)
    return models + list(own.values())


def without(record: Record) -> Record:
    """A model's record without the check; where only that failed, the model passes."""
    checks = {name: found for name, found in record.checks.items() if name != TOKENIZER}
    if not record.message.startswith(f"{TOKENIZER}: "):
        return replace(record, checks=checks)  # something else is worse, or came before
    worse = (item for item in checks.items() if item[1].status in FAILED)
    name, found = next(worse, ("", CheckResult("pass")))
    return replace(as_found(record, name, found), checks=checks)


def alone(record: Record, result: CheckResult) -> Record:
    """The record of a tokenizer: what the check found in a model's cell."""
    return replace(
        as_found(record, TOKENIZER, result),
        backend=TOKENIZER,
        device="cpu",
        checks={TOKENIZER: result},
        probes={},
        seconds=0.0,
        cpu_seconds=0.0,
    )


def as_found(record: Record, name: str, result: CheckResult) -> Record:
    """The record with the verdict of one of its checks."""
    message = f"{name}: {result.message}" if result.message else ""
    return replace(
        record,
        status=result.status,
        message=message,
        exception=result.exception,
        fingerprint=result.fingerprint,
        traceback="",
        explanation=explanation(result.exception, message) if message else "",
    )
