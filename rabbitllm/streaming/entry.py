"""Has something run a module's forward for it, and see its real arguments."""

import inspect
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

Forward = Callable[..., Any]
Run = Callable[[Forward, tuple[Any, ...], dict[str, Any]], Any]
"""Is given a module's own forward and a call's arguments, and returns what the call returns."""


def run_by(module: nn.Module, run: Run) -> None:
    """Has `run` run the module's forward.

    Hooks, of the module's own and of users, see the call as it was made. The module keeps alive
    what runs it, and not the other way round.
    """
    own: Callable[[], Forward | None]
    if "forward" in vars(module):
        replaced = module.forward
        own = lambda: replaced  # noqa: E731
    else:
        own = weakref.WeakMethod(module.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return run(own(), args, kwargs)  # type: ignore[arg-type]  # who calls it is alive

    forward.__signature__ = inspect.signature(module.forward)  # type: ignore[attr-defined]
    forward.__doc__ = module.forward.__doc__
    module.forward = forward
