"""Which weights are tensors of the checkpoint one behind the other."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.core_model_loading import Chunk, Concatenate, MergeModulelist, WeightConverter

from rabbitllm.checkpoint.convert import Recipe, recipes_for
from rabbitllm.checkpoint.index import read_index
from rabbitllm.checkpoint.joining import Joiner
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.tensors import Extent, TensorEntry
from rabbitllm.model import StreamedModel

MIXTURES = ["mixtral", "qwen3_moe", "deepseek_v3"]


@pytest.mark.parametrize("architecture", MIXTURES)
def test_experts_are_read_where_they_lie(
    architecture: str,
    checkpoint: Callable[..., Path],
    stock: Callable[..., torch.nn.Module],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
) -> None:
    folder = checkpoint(architecture)
    model = streamed(folder, layer_shards_saving_path=tmp_path / "stores")
    assert torch.equal(model(prompt).logits, stock(folder)(prompt).logits)
    assert not (tmp_path / "stores").exists()


@pytest.mark.parametrize("architecture", MIXTURES)
def test_pieces_are_those_that_transformers_puts_together(
    architecture: str, checkpoint: Callable[..., Path], stock: Callable[..., torch.nn.Module]
) -> None:
    folder = checkpoint(architecture)
    model = stock(folder)
    entries = read_index(folder)
    joiner = Joiner(model, entries)
    recipes = [recipe for recipe in recipes_for(model, entries) if recipe.converter]
    joined = {name: entry for recipe in recipes for name, entry in joiner.join(recipe).items()}
    assert joined.keys() == {name for recipe in recipes for name in recipe.targets}
    reader, state = Reader(joined), model.state_dict()
    for name in joined:
        assert torch.equal(reader.read(name), state[name])
        some = torch.tensor([3, 0, 3])
        assert torch.equal(reader.read_rows(name, some), state[name][some])
        assert reader.equal(name, name)


class _Model(torch.nn.Module):
    """Weights "a.w" and "b.w" of these shapes."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in zip("ab", shapes, strict=False):
            self.add_module(name, torch.nn.Module())
            self.get_submodule(name).register_parameter("w", torch.nn.Parameter(torch.ones(shape)))

    config = None


def _join(
    converter: WeightConverter, sources: list[tuple[int, ...]], *targets: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """The places of each target's pieces among sources of these shapes."""
    names = ["a.w", "b.w"][: len(targets)]
    patterns = converter.source_patterns
    keys = [(f"k{n}", patterns[n % len(patterns)]) for n in range(len(sources))]
    entries = {
        key: TensorEntry((Extent(Path("f"), n, 4),), torch.float32, shape)
        for n, ((key, _), shape) in enumerate(zip(keys, sources, strict=True))
    }
    joiner = Joiner(_Model(*targets), entries)  # type: ignore[arg-type]  # what converters ask of one
    found = joiner.join(Recipe(tuple(names), keys, converter))
    return [tuple(part.stored[0].offset for part in found[name].parts) for name in names if found]


def test_rows_put_on_top_of_each_other_are_joined() -> None:
    converter = WeightConverter(["x", "y"], "a.w", [Concatenate(dim=0)])
    assert _join(converter, [(8, 4), (6, 4)], (14, 4)) == [(0, 1)]


def test_columns_beside_each_other_are_not() -> None:
    converter = WeightConverter(["x", "y"], "a.w", [Concatenate(dim=1)])
    assert _join(converter, [(8, 4), (8, 4)], (8, 8)) == []


def test_a_list_stacked_along_another_dimension_is_not() -> None:
    converter = WeightConverter("x", "a.w", [MergeModulelist(dim=1)])
    assert _join(converter, [(8, 4), (8, 4)], (8, 2, 4)) == []


def test_a_tensor_that_is_cut_is_not() -> None:
    converter = WeightConverter("x", ["a.w", "b.w"], [Chunk(dim=0)])
    assert _join(converter, [(8, 4)], (4, 4), (4, 4)) == []


def test_pieces_that_do_not_fill_the_weight_are_not() -> None:
    converter = WeightConverter(["x", "y"], "a.w", [Concatenate(dim=0)])
    assert _join(converter, [(8, 4), (6, 4)], (15, 4)) == []
