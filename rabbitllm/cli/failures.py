"""What an error means to a user of the command: a line, and an exit status."""

from rabbitllm.errors import first_line

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
"""Exit statuses: something went wrong; what was asked cannot be; Ctrl-C."""
OUT_OF_MEMORY = {
    "OutOfMemoryError": "Lower --device-memory or --max-seq-len, or free memory on the device.",
    "MemoryError": "Lower --host-memory, or free memory.",
    "DefaultCPUAllocator": "Lower --host-memory, or free memory.",
}
"""What an error of torch or Python says when memory is used up, and the way out."""
EXPECTED = (ValueError, OSError, ImportError, RuntimeError, MemoryError)
"""What `explain` may know something about."""


def explain(error: Exception) -> tuple[str, int] | None:
    """The line and the exit status of an error; None if it is a bug, which a traceback tells of.

    Args:
        error: one of `EXPECTED`.
    """
    if isinstance(error, ValueError):  # CheckpointError and BudgetError are ValueErrors
        return str(error), MISUSED
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}.", FAILED
    if isinstance(error, OSError | ImportError):
        return str(error), FAILED
    said = f"{type(error).__name__}: {error}"
    hint = next((hint for sign, hint in OUT_OF_MEMORY.items() if sign in said), None)
    return (f"{first_line(error) or 'Out of memory.'} {hint}", FAILED) if hint else None
