"""A number format is a module of codecs/ and a row of its table: here is one, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from typing_extensions import Self, override

from rabbitllm import CheckpointError, StreamedModel
from rabbitllm.checkpoint import codecs, reads
from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, Unit, elements
from rabbitllm.checkpoint.inventory import damaged, find_stores
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.tensors import read_header
from rabbitllm.streaming.weights import Stage, Weight

MASK = 7


@dataclass(frozen=True)
class Halves(Codec):
    """The two bytes of each bfloat16 in a tensor each, the low ones not as they are."""

    name = "halves"
    scratch = 16
    mask: int

    @override
    def stored(self, weight: Layout) -> Mapping[str, Layout]:
        if weight.dtype != torch.bfloat16:
            raise ValueError(f"{weight.dtype} has no two halves")
        half = Layout(torch.uint8, (elements(weight.shape),))
        return {"": half, "_low": half}

    @override
    def unit(self, weight: Layout) -> Unit:
        return Unit((100, 100), 200)

    @override
    def decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        assert scratch.nbytes == self.scratch
        target[1::2] = stored[0]
        target[::2] = stored[1] ^ self.mask

    @override
    def decode_on(self, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        target[1::2] = stored[0]
        target[::2] = stored[1] ^ self.mask

    @classmethod
    @override
    def expected(cls, weight: Layout) -> Self | None:
        return cls(0) if weight.dtype == torch.bfloat16 else None

    @classmethod
    @override
    def encode(cls, weight: torch.Tensor) -> tuple[Self, dict[str, torch.Tensor]] | None:
        data = weight.reshape(-1).view(torch.uint8)
        return cls(MASK), {"": data[1::2].contiguous(), "_low": data[::2] ^ MASK}


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(codecs.CODECS, Halves.name, f"{__name__}:Halves")
    monkeypatch.setitem(codecs.COMPRESSIONS, Halves.name, "both halves")


@pytest.fixture
def folder(build: Callable[..., PreTrainedModel], tmp_path: Path) -> Path:
    path = tmp_path / "llama"
    build("llama", torch.bfloat16, tie_word_embeddings=False).save_pretrained(path)
    return path


@pytest.mark.parametrize("chunk", [5 * 4096, 4 << 20])
def test_a_weight_of_several_stored_tensors_streams_with_stocks_bits(
    folder: Path,
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
) -> None:
    monkeypatch.setattr(reads, "CHUNK", chunk)
    options: dict[str, Any] = {"layer_shards_saving_path": tmp_path / "stores"}
    expected = stock(folder)(prompt).logits
    for _ in range(2):  # written, and found
        model = streamed(folder, compression=Halves.name, **options)
        assert torch.equal(model(prompt).logits, expected)
    (store,) = find_stores(tmp_path / "stores")
    assert store.codecs == (Halves.name,)
    assert store.complete
    assert damaged(store) == []
    found = store.entries()
    assert found["lm_head.weight"].codec == Halves(MASK)
    assert len(found["lm_head.weight"].stored) == 2
    assert "lm_head.weight_low" not in found


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("chunk", [5 * 4096, 3 * 4096 + 8, 4096])
def test_it_is_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool, chunk: int
) -> None:
    monkeypatch.setattr(reads, "CHUNK", chunk)
    weight = torch.randn(71, 1009).bfloat16()
    codec, tensors = Halves.encode(weight) or pytest.fail("not encoded")
    about = {"dtype": "BF16", "shape": list(weight.shape)}
    file = tmp_path / "a.safetensors"
    stored = {f"w{suffix}": tensor for suffix, tensor in tensors.items()}
    save_file(stored | {"a": torch.zeros(3)}, file, codecs.to_header({"w": (codec, about)}))
    reader = Reader(read_header(file))
    stage = Stage("stage", (), (Weight("w", (), weight.dtype, weight.shape),))
    buffer = torch.zeros(stage.nbytes, dtype=torch.uint8)
    asked = reader.cut(stage.offsets, direct)
    assert len(asked.chunks) > 1
    reader.fill(buffer, asked)
    assert torch.equal(buffer[: weight.nbytes].view(torch.bfloat16).view(weight.shape), weight)
    assert torch.equal(reader.view("w"), weight)
    assert reader.equal("w", "w")


def test_what_a_header_lacks_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    about = {"dtype": "BF16", "shape": [4]}
    save_file(
        {"w": torch.zeros(4, dtype=torch.uint8)}, file, codecs.to_header({"w": (Halves(1), about)})
    )
    with pytest.raises(CheckpointError, match="w_low"):
        read_header(file)


@pytest.mark.parametrize("name", codecs.CODECS)
def test_a_row_leads_to_the_codec_of_its_name(name: str) -> None:
    assert codecs.codec_class(name).name == name


def test_a_compression_is_a_codec() -> None:
    assert codecs.COMPRESSIONS.keys() < codecs.CODECS.keys()
