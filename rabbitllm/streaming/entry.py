"""Has something run a module's forward for it, and see its real arguments."""

import inspect
import weakref
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch import nn

Forward = Callable[..., Any]
Run = Callable[[Forward, tuple[Any, ...], dict[str, Any]], Any]
"""Is given a module's own forward and a call's arguments, and returns what the call returns."""
CALL = "_call_impl"
"""By what torch calls a module: the hooks, and the forward between them. It has no public name."""


class _Entry:
    """Stands in for a module's forward, which something else runs."""

    def __init__(self, own: Callable[[], Forward | None], run: Run, like: Forward) -> None:
        self._own, self._run = own, run
        self.__signature__ = inspect.signature(like)
        self.__doc__ = like.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._forward(), args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Forward:
        """A copy of the module has its own forward: its weights are its own, too."""
        return deepcopy(self._forward(), memo)

    def _forward(self) -> Forward:
        forward = self._own()
        assert forward is not None, "who calls it holds the module"
        return forward


def is_replaced(module: nn.Module) -> bool:
    """Whether somebody beside `run_by` has put another forward in the place of the module's own."""
    held = vars(module)
    return any(name in held and not isinstance(held[name], _Entry) for name in ("forward", CALL))


def run_by(module: nn.Module, run: Run, entry: str = "forward") -> None:
    """Has `run` run the module's forward.

    Hooks, of the module's own and of users, see the call as it was made. The module keeps alive
    what runs it, and not the other way round.

    Args:
        module: whose.
        run: see `Run`.
        entry: "forward", or `CALL` for the forward with all hooks around it.
    """
    like = getattr(module, entry)
    own = (lambda: like) if entry in vars(module) else weakref.WeakMethod(like)
    setattr(module, entry, _Entry(own, run, like))
