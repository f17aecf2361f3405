"""Stock beside us on the same folder: the same model, or both refuse.

A layout is a way to spread the same tiny model over files. What is compared: the values and dtypes
of all weights and the settings for generating, which decide whatever the model answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from harness.measuring.weights import save_weights
from rabbitllm import StreamedModel

Tensors = dict[str, torch.Tensor]
SAFE, BIN = "model.safetensors", "pytorch_model.bin"
NORM = "model.layers.0.input_layernorm.weight"
UP = "model.layers.1.mlp.up_proj.weight"


@dataclass
class Folder:
    """A checkpoint that is being laid out.

    Attributes:
        path: where.
        tensors: all of the model's.
    """

    path: Path
    tensors: Tensors

    def whole(self, name: str, factor: float = 1.0, **changed: torch.Tensor) -> None:
        """One file of all tensors."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        save_weights(_times(factor, self.tensors) | changed, self.path / name)

    def parts(self, single: str, names: str = "", factor: float = 1.0, **index: Any) -> None:
        """Two shards and their index.

        Args:
            single: the file that they are in place of.
            names: of a shard, with {} for its number; as is usual if empty.
            factor: what the values are multiplied by.
            index: what else the index holds.
        """
        stem, suffix = single.rsplit(".", 1)
        names = names or f"{stem}-{{}}-of-00002.{suffix}"
        keys = sorted(self.tensors)
        halves = {names.format("0000" + str(n + 1)): keys[n::2] for n in range(2)}
        for name, held in halves.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            tensors = {
                key: (self.tensors[key] * factor).to(self.tensors[key].dtype) for key in held
            }
            save_weights(tensors, self.path / name)
        weight_map = {key: name for name, held in halves.items() for key in held}
        weight_map |= index.pop("weight_map", {})
        self.write(f"{single}.index.json", {"metadata": {}, "weight_map": weight_map} | index)

    def write(self, name: str, fields: Any) -> None:
        """A JSON file."""
        (self.path / name).write_text(json.dumps(fields))

    def configure(self, **fields: Any) -> None:
        """Sets fields of config.json; None removes one."""
        path = self.path / "config.json"
        config = json.loads(path.read_text()) | fields
        self.write("config.json", {k: v for k, v in config.items() if v is not None})

    def cast(self, dtype: torch.dtype, apart: str, but: torch.dtype) -> None:
        """All tensors in a dtype, but those whose key holds `apart` in another."""
        for key, tensor in self.tensors.items():
            self.tensors[key] = tensor.to(but if apart in key else dtype)

    def rename(self, change: Callable[[str], str]) -> None:
        """Other keys for the same tensors."""
        self.tensors = {change(key): tensor for key, tensor in self.tensors.items()}


def _times(factor: float, tensors: Tensors) -> Tensors:
    if factor == 1:  # some dtypes do not multiply
        return tensors
    return {key: (tensor * factor).to(tensor.dtype) for key, tensor in tensors.items()}


Layout = Callable[[Folder], dict[str, Any] | None]
"""Lays a folder out; returns arguments of `from_pretrained`, if it takes any."""
LAYOUTS: dict[str, Layout] = {}


def layout(make: Layout) -> Layout:
    """Adds to `LAYOUTS` under the function's name."""
    LAYOUTS[make.__name__] = make
    return make


def _several(folder: Folder, *names: str) -> None:
    """Files of different values, so that it shows which was read."""
    for factor, name in enumerate(names, start=1):
        (folder.parts if name.startswith("parts:") else folder.whole)(
            name.removeprefix("parts:"), factor=factor
        )


def _choices() -> None:
    """Which of several files: every set that people have in one folder, with what they may ask."""
    sets = {
        "safe": (SAFE,),
        "safe_parts": (f"parts:{SAFE}",),
        "bin": (BIN,),
        "bin_parts": (f"parts:{BIN}",),
        "safe_and_parts": (SAFE, f"parts:{SAFE}"),
        "safe_and_bin": (SAFE, BIN),
        "safe_parts_and_bin": (f"parts:{SAFE}", BIN),
        "bin_and_parts": (BIN, f"parts:{BIN}"),
        "bin_parts_and_safe": (f"parts:{BIN}", SAFE),
        "all_four": (SAFE, f"parts:{SAFE}", BIN, f"parts:{BIN}"),
        "none": (),
        "consolidated": ("consolidated.safetensors",),
        "variants": (SAFE, "model.fp16.safetensors", "pytorch_model.fp16.bin"),
        "variant_bin": ("pytorch_model.fp16.bin",),
    }
    asked: dict[str, dict[str, Any]] = {
        "": {},
        "_safe_only": {"use_safetensors": True},
        "_no_safe": {"use_safetensors": False},
        "_fp16": {"variant": "fp16"},
    }
    for name, files in sets.items():
        for end, arguments in asked.items():

            def make(
                folder: Folder,
                files: tuple[str, ...] = files,
                arguments: dict[str, Any] = arguments,
            ) -> dict[str, Any]:
                _several(folder, *files)
                return arguments

            LAYOUTS[name + end] = make


_choices()


@layout
def variant_in_parts(folder: Folder) -> dict[str, Any]:
    folder.parts(SAFE, "model.fp16-{}-of-00002.safetensors")
    (folder.path / f"{SAFE}.index.json").rename(folder.path / "model.safetensors.index.fp16.json")
    return {"variant": "fp16"}


@layout
def in_a_subfolder(folder: Folder) -> dict[str, Any]:
    inside = folder.path / "inside"
    inside.mkdir()
    for file in list(folder.path.glob("*.json")):
        file.rename(inside / file.name)
    Folder(inside, folder.tensors).parts(SAFE)
    return {"subfolder": "inside"}


@layout
def shards_in_a_subfolder(folder: Folder) -> None:
    folder.parts(SAFE, "shards/model-{}.safetensors")


@layout
def bin_shards_in_a_subfolder(folder: Folder) -> None:
    folder.parts(BIN, "shards/model-{}.bin")


@layout
def shards_of_other_names(folder: Folder) -> None:
    folder.parts(SAFE, "weights.{}.safetensors")


@layout
def a_missing_shard(folder: Folder) -> None:
    folder.parts(SAFE)
    (folder.path / "model-00002-of-00002.safetensors").unlink()


@layout
def a_missing_bin_shard(folder: Folder) -> None:
    folder.parts(BIN)
    (folder.path / "pytorch_model-00001-of-00002.bin").unlink()


@layout
def an_index_without_shards_beside_the_whole(folder: Folder) -> None:
    folder.parts(SAFE, factor=2)
    for shard in folder.path.glob("model-*"):
        shard.unlink()
    folder.whole(SAFE)


@layout
def a_broken_index_beside_the_whole(folder: Folder) -> None:
    folder.whole(SAFE)
    (folder.path / f"{SAFE}.index.json").write_text("{")


@layout
def a_broken_index(folder: Folder) -> None:
    folder.parts(SAFE)
    (folder.path / f"{SAFE}.index.json").write_text("{")


@layout
def an_index_with_a_key_nobody_has(folder: Folder) -> None:
    folder.parts(SAFE, weight_map={"model.extra.weight": "model-00001-of-00002.safetensors"})


@layout
def an_index_that_names_the_other_shard(folder: Folder) -> None:
    folder.parts(SAFE, weight_map={UP: "model-00001-of-00002.safetensors"})


@layout
def the_same_key_in_both_shards(folder: Folder) -> None:
    folder.parts(SAFE)
    first = folder.path / "model-00001-of-00002.safetensors"
    half = {key: folder.tensors[key] for key in sorted(folder.tensors)[0::2]}
    other = sorted(folder.tensors)[1]
    save_weights(half | {other: folder.tensors[other] * 3}, first)


@layout
def a_named_file(folder: Folder) -> None:
    folder.whole("final.safetensors")
    folder.configure(transformers_weights="final.safetensors")


@layout
def a_named_file_beside_the_usual(folder: Folder) -> None:
    _several(folder, "final.safetensors", SAFE)
    folder.configure(transformers_weights="final.safetensors")


@layout
def a_named_index(folder: Folder) -> None:
    folder.parts("final.safetensors")
    folder.configure(transformers_weights="final.safetensors.index.json")


@layout
def a_named_file_that_is_absent(folder: Folder) -> None:
    folder.whole(SAFE)
    folder.configure(transformers_weights="final.safetensors")


@layout
def a_named_pickle(folder: Folder) -> None:
    folder.whole("final.bin")
    folder.configure(transformers_weights="final.bin")


@layout
def a_named_file_elsewhere(folder: Folder) -> None:
    folder.whole("../elsewhere.safetensors")
    folder.configure(transformers_weights="../elsewhere.safetensors")


def _dtypes() -> None:
    """No dtype in the config, or another one than the files'."""
    whole, half = torch.float32, torch.bfloat16
    for name, (dtype, apart, but) in {
        "float16": (torch.float16, "nothing", whole),
        "bfloat16": (half, "nothing", whole),
        "float32_norms": (half, "norm", whole),
        "float32_embedding": (half, "embed", whole),
        "bfloat16_head": (whole, "lm_head", half),
    }.items():
        for files in (SAFE, f"parts:{SAFE}", BIN, f"parts:{BIN}"):
            for stated in (None, "float32"):

                def make(
                    folder: Folder,
                    dtype: torch.dtype = dtype,
                    apart: str = apart,
                    but: torch.dtype = but,
                    files: str = files,
                    stated: str | None = stated,
                ) -> None:
                    folder.cast(dtype, apart, but)
                    folder.configure(dtype=stated, torch_dtype=None)
                    _several(folder, files)

                place = files.replace("parts:", "parts_of_").partition(".")[0]
                LAYOUTS[f"{name}_{place}_{'stated' if stated else 'unstated'}"] = make


_dtypes()


@layout
def float8_without_a_dtype(folder: Folder) -> None:
    folder.tensors[UP] = folder.tensors[UP].to(torch.float8_e4m3fn)
    folder.configure(dtype=None)
    folder.whole(SAFE)


@layout
def the_older_name_of_dtype(folder: Folder) -> None:
    folder.configure(dtype=None, torch_dtype="bfloat16")
    folder.whole(SAFE)


@layout
def an_asked_dtype(folder: Folder) -> dict[str, Any]:
    folder.whole(BIN)
    return {"dtype": "bfloat16"}


@layout
def a_transposed_view(folder: Folder) -> None:
    folder.tensors[UP] = folder.tensors[UP].T.contiguous().T
    save_weights(folder.tensors, folder.path / BIN)


@layout
def views_of_one_memory(folder: Folder) -> None:
    both = torch.stack([folder.tensors[UP], folder.tensors[UP] * 2])
    folder.tensors[UP] = both[1]
    folder.tensors[UP.replace("up", "gate")] = both[0]
    save_weights(folder.tensors, folder.path / BIN)


@layout
def parameters(folder: Folder) -> None:
    save_weights(
        {key: torch.nn.Parameter(t) for key, t in folder.tensors.items()}, folder.path / BIN
    )


@layout
def an_empty_pickle(folder: Folder) -> None:
    (folder.path / BIN).write_bytes(b"")


@layout
def a_truncated_pickle(folder: Folder) -> None:
    folder.whole(BIN)
    data = (folder.path / BIN).read_bytes()
    (folder.path / BIN).write_bytes(data[: len(data) // 2])


@layout
def a_truncated_file(folder: Folder) -> None:
    folder.whole(SAFE)
    data = (folder.path / SAFE).read_bytes()
    (folder.path / SAFE).write_bytes(data[: len(data) // 2])


@layout
def keys_without_the_prefix(folder: Folder) -> None:
    folder.rename(lambda key: key.removeprefix("model."))
    folder.whole(SAFE)


@layout
def keys_nobody_needs(folder: Folder) -> None:
    folder.whole(SAFE, **{"model.layers.9.mlp.up_proj.weight": torch.ones(2, 2)})


@layout
def rotary_buffers_of_old_checkpoints(folder: Folder) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder.whole(BIN, **{name: torch.ones(8)})


@layout
def settings_in_the_config(folder: Folder) -> None:
    (folder.path / "generation_config.json").unlink()
    folder.configure(do_sample=True, temperature=0.3, top_p=0.7, eos_token_id=[2, 7], max_length=50)
    folder.whole(SAFE)


@layout
def settings_in_both(folder: Folder) -> None:
    folder.write("generation_config.json", {"do_sample": True, "top_k": 3, "eos_token_id": 9})
    folder.configure(temperature=0.3, eos_token_id=[2, 7])
    folder.whole(SAFE)


@layout
def settings_nowhere(folder: Folder) -> None:
    (folder.path / "generation_config.json").unlink()
    folder.whole(BIN)


@layout
def no_config(folder: Folder) -> None:
    (folder.path / "config.json").unlink()
    folder.whole(SAFE)


@pytest.fixture
def folder(checkpoint: Callable[..., Path], tmp_path: Path) -> Folder:
    """config.json and generation_config.json of a tiny llama, and its tensors."""
    path = tmp_path / "checkpoint"
    path.mkdir()
    for name in ("config.json", "generation_config.json"):
        (path / name).write_bytes((checkpoint() / name).read_bytes())
    model = AutoModelForCausalLM.from_pretrained(checkpoint())
    return Folder(path, {key: t.clone() for key, t in model.state_dict().items()})


def test_there_are_enough_layouts() -> None:
    assert len(LAYOUTS) >= 60


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_is_stocks_model_or_both_refuse(
    name: str,
    folder: Folder,
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
) -> None:
    arguments = LAYOUTS[name](folder) or {}
    expected = loaded(stock, folder.path, arguments)
    if isinstance(expected, str):
        with pytest.raises((ValueError, OSError), match=re.escape(str(folder.path.parent))):
            streamed(folder.path, **arguments)
        return
    found = streamed(folder.path, **arguments)
    values = found.state_dict()
    assert {key: t.dtype for key, t in values.items()} == {
        key: t.dtype for key, t in expected.state_dict().items()
    }
    for key, tensor in expected.state_dict().items():
        assert torch.equal(values[key], tensor), key
    assert found.dtype == expected.dtype
    assert found.generation_config.to_dict() == expected.generation_config.to_dict()


def loaded(
    stock: Callable[..., PreTrainedModel], path: Path, arguments: dict[str, Any]
) -> PreTrainedModel | str:
    """Stock's model, or what it refuses with, whatever type that is."""
    try:
        return stock(path, **arguments)
    except Exception as error:
        return str(error)
