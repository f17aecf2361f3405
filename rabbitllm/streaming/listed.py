"""Lists of experts: of many modules alike, a block calls those that its tokens are sent to.

Before transformers held all experts of a layer in one parameter, each was a module of its own in an
`nn.ModuleList` or `nn.ModuleDict`; code that comes with checkpoints has this form still. It is
known by two things: the modules have weights of one form, and beside them is a matrix with a row,
or a column, for each of them: the router's. Which ones a block calls shows only when it does.
"""

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from torch import nn

Form: TypeAlias = tuple[object, ...]


def find_listed(blocks: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """The lists of experts in some blocks.

    Args:
        blocks: by their paths.

    Returns:
        Path of a list -> the paths of the experts in it, in its order.
    """
    return {
        f"{path}.{name}": [f"{path}.{name}.{each}" for each in experts]
        for path, block in blocks.items()
        for name, experts in _lists(block)
        if _is_routed(block, f"{name}.", len(experts))
    }


def _lists(module: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """The outermost lists of modules alike, and the names that these have there."""
    for name, child in module.named_children():
        if alike := _alike(child):
            yield name, alike
        else:
            yield from ((f"{name}.{inner}", each) for inner, each in _lists(child))


def _alike(module: nn.Module) -> list[str]:
    """The names that a list has for its modules, if they are alike; none otherwise.

    Beside them it may hold modules without weights, such as a dropout.
    """
    if not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return []
    forms = {name: form for name, child in module.named_children() if (form := _form(child))}
    alike = len(forms) > 1 and len({*forms.values()}) == 1
    return list(forms) if alike and _streams(*module.children()) else []


def _form(module: nn.Module) -> Form:
    """What modules that are alike have in common; nothing if they have no weights."""
    weights = [(name, each.shape, each.dtype) for name, each in module.named_parameters()]
    return (type(module), *weights) if weights else ()


def _streams(*modules: nn.Module) -> bool:
    """Whether all that they hold are parameters that rows can be, some of them matrices."""
    shapes = [each.shape for module in modules for each in module.parameters()]
    buffered = any(True for module in modules for _ in module.buffers())
    return all(map(len, shapes)) and any(len(shape) > 1 for shape in shapes) and not buffered


def _is_routed(block: nn.Module, experts: str, count: int) -> bool:
    """Whether a matrix beside a block's experts has a row or a column for each of them.

    A convolution's kernel is none, though it may be as wide as there are modules.

    Args:
        block: whose.
        experts: what the names of their weights begin with.
        count: of the experts.
    """
    beside = (each for name, each in block.named_parameters() if not name.startswith(experts))
    return any(weight.dim() == 2 and count in weight.shape for weight in beside)
