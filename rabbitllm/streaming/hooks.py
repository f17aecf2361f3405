"""Has something happen before and behind a module's forward, and says where others have."""

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

from torch import nn


def around(module: nn.Module, before: Callable[[], None], behind: Callable[[], None]) -> None:
    """Calls one before the module's forward and one behind it, also when the forward fails.

    What is behind comes last: hooks that were registered since see the weights as they were used.
    A copy of the module takes its hooks along, but has weights of its own: they do nothing there.
    """
    whose = weakref.ref(module)

    def end(module: nn.Module, *_: object) -> None:
        if module is whose():
            behind()

    def begin(module: nn.Module, *_: object) -> None:
        if module is not whose():
            return
        hooks = cast("OrderedDict[int, Any]", module._forward_hooks)
        if next(reversed(hooks), None) != last:
            hooks.move_to_end(last)
        before()

    last = module.register_forward_hook(end, always_call=True).id
    module.register_forward_pre_hook(begin)


def seen_inside(module: nn.Module) -> bool:
    """Whether hooks see the calls of any module inside, which they may change."""
    inner = (each for each in module.modules() if each is not module)
    return any(each._forward_pre_hooks or each._forward_hooks for each in inner)
