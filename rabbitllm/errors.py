"""Errors that a user can act on: each names the thing, its place and the way out."""


class CheckpointError(ValueError):
    """A checkpoint is absent, incomplete, damaged, or does not fit its own config."""


class BudgetError(ValueError):
    """A memory or disk budget is too small; the message states what is needed."""


def first_line(error: Exception) -> str:
    """What an error says, without the lines of explanation below."""
    return str(error).partition("\n")[0]
