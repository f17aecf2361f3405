"""Quantised checkpoints in published key names, each with its twin that is not quantised."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

Tensors: TypeAlias = dict[str, torch.Tensor]
Encode: TypeAlias = Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]
"""A weight [out, in] -> what is stored of it, by suffix of its module's name, and what that is."""

LINEAR = r"layers\..*proj(_with_mqa)?\.weight$"
"""Keys that are quantised; norms, the router, embedding and head are not."""


class Twins(NamedTuple):
    """A quantised checkpoint, and one that holds what its weights are."""

    quantised: Path
    plain: Path

    def change(self, change: Callable[[Tensors], None]) -> None:
        """Changes the quantised one's tensors."""
        file = self.quantised / "model.safetensors"
        tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture
def twins(
    build: Callable[..., PreTrainedModel], configure: Callable[..., None], tmp_path: Path
) -> Callable[..., Twins]:
    """`twins(encode, settings, model_type, pattern, field=value)` -> those folders."""

    def make(
        encode: Encode,
        settings: Mapping[str, Any] | None,
        model_type: str = "llama",
        pattern: str = LINEAR,
        dtype: torch.dtype = torch.bfloat16,
        **fields: Any,
    ) -> Twins:
        folders = Twins(tmp_path / "quantised", tmp_path / "plain")
        fields = {"tie_word_embeddings": False, "num_hidden_layers": 2} | fields
        build(model_type, dtype, **fields).save_pretrained(folders.plain)
        shutil.copytree(folders.plain, folders.quantised)
        plain = load_file(folders.plain / "model.safetensors")
        quantised: Tensors = {}
        for key, weight in list(plain.items()):
            if re.search(pattern, key):
                stored, decoded = encode(weight.float())
                plain[key] = decoded.to(dtype).contiguous()
                stem = key.removesuffix(".weight")
                quantised |= {stem + suffix: tensor for suffix, tensor in stored.items()}
            else:
                quantised[key] = weight
        assert len(quantised) > len(plain) or pattern != LINEAR
        for folder, tensors in zip(folders, (quantised, plain), strict=True):
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        if settings:
            configure(folders.quantised, quantization_config=settings)
        return folders

    return make


@pytest.fixture
def logits(streamed: Callable[..., PreTrainedModel], prompt: torch.Tensor) -> Callable[..., Any]:
    """`logits(folder)` -> a streamed model's, for `prompt`: read in place, not from a store."""

    def of(folder: Path, **options: Any) -> torch.Tensor:
        found: torch.Tensor = streamed(folder, **options)(prompt).logits
        return found

    return of


@pytest.fixture
def alike(
    stock: Callable[..., PreTrainedModel], logits: Callable[..., Any], prompt: torch.Tensor
) -> Callable[[Twins], bool]:
    """`alike(folders)`: the quantised one streams with the bits of stock on the plain one."""

    def of(folders: Twins) -> bool:
        return torch.equal(logits(folders.quantised), stock(folders.plain)(prompt).logits)

    return of
