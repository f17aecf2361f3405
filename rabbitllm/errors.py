"""The errors that a user can act on; each message names the thing, its place and the way out."""


class CheckpointError(ValueError):
    """A checkpoint is absent, incomplete, damaged, or does not fit the model that its config names."""


class BudgetError(ValueError):
    """A memory or disk budget is too small for what it has to hold; the message states the minimum."""
