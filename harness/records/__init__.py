"""What is known about cells, and where it is kept."""

from harness.records.record import (
    ASTRAY,
    FAILED,
    OF_STOCK,
    SCHEMA,
    UNMEASURED,
    CheckResult,
    Measurement,
    Record,
    RecordError,
    Status,
    from_json,
    parse,
    to_json,
)
from harness.records.store import Store, read_all, write_atomically

__all__ = [
    "ASTRAY",
    "FAILED",
    "OF_STOCK",
    "SCHEMA",
    "UNMEASURED",
    "CheckResult",
    "Measurement",
    "Record",
    "RecordError",
    "Status",
    "Store",
    "from_json",
    "parse",
    "read_all",
    "to_json",
    "write_atomically",
]
