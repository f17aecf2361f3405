"""Who runs the same checkpoint, and how each is told to keep its layers off the device."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

WEIGHTS_INDEX = "model.safetensors.index.json"
ATTENTION = "sdpa"
"""The backend of all of them, where the model has it: it is the one that airllm picks."""


@dataclass(frozen=True)
class Peer:
    """One way to run a checkpoint.

    Attributes:
        load: folder, device ("cuda:0" or "cpu"), a scratch folder -> a model with `generate`.
        how: what it does with the weights, for the table.
        requirements: what its environment needs besides torch, transformers and accelerate.
        devices: where it runs.
        slower: it is asked for so many times fewer tokens than the fast ones.
    """

    load: Callable[[Path, str, Path], Any]
    how: str
    requirements: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cuda", "cpu")
    slower: int = 1


def attention_of(folder: Path) -> str:
    """The backend of a checkpoint's model: stock refuses one that the model does not have."""
    model: Any = AutoModelForCausalLM._model_mapping[type(AutoConfig.from_pretrained(folder))]
    return ATTENTION if model._supports_sdpa else "eager"


def dequantised(folder: Path) -> Any:
    """A checkpoint's config; stock decodes what is quantised when it loads it."""
    config = AutoConfig.from_pretrained(folder)
    if quantised := getattr(config, "quantization_config", None):
        config.quantization_config = quantised | {"dequantize": True}
    return config


def load_stock(folder: Path, device: str, scratch: Path) -> Any:
    """The stock model: copied to a CUDA device; on CPU, mapped files."""
    placement = {} if device == "cpu" else {"device_map": {"": device}}
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", attn_implementation=attention_of(folder), **placement
    )


def load_offloaded(where: str) -> Callable[[Path, str, Path], Any]:
    """A loader that gives accelerate the layers to keep on "cpu" or "disk"."""

    def load(folder: Path, device: str, scratch: Path) -> Any:
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        blocks = [
            name
            for name, module in model.named_modules()
            if isinstance(module, GradientCheckpointingLayer)
        ]
        others = [
            name
            for name, module in model.named_modules()
            if not any(module.children()) and not name.startswith(tuple(f"{b}." for b in blocks))
        ]
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            attn_implementation=attention_of(folder),
            config=dequantised(folder),
            device_map=dict.fromkeys(others, device) | dict.fromkeys(blocks, where),
            offload_folder=scratch,
        )

    return load


def load_airllm(folder: Path, device: str, scratch: Path) -> Any:
    """The class that airllm's AutoModel picks for a llama-like checkpoint, with its defaults."""
    from airllm import AirLLMBaseModel

    class Untokenized(AirLLMBaseModel):  # type: ignore[misc]  # it has no types
        """Checkpoints with random weights have no tokenizer, and none is needed."""

        def get_tokenizer(self, hf_token: str | None = None) -> None: ...

    named = link_as_on_the_hub(folder, scratch / "checkpoint")
    return Untokenized(named, device=device, layer_shards_saving_path=scratch)


def link_as_on_the_hub(folder: Path, links: Path) -> Path:
    """A checkpoint of links whose shards have the hub's names: airllm takes numbers out of them.

    A shard that holds one layer it links in turn, so nothing is copied.

    Args:
        folder: a checkpoint of several shards.
        links: made for the links; returned.
    """
    links.mkdir()
    index = json.loads((folder / WEIGHTS_INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    names = {
        shard: f"model-{number:05}-of-{len(shards):05}.safetensors"
        for number, shard in enumerate(shards, 1)
    }
    for shard, name in names.items():
        (links / name).symlink_to((folder / shard).resolve())
    (links / "config.json").symlink_to((folder / "config.json").resolve())
    weight_map = {weight: names[shard] for weight, shard in index["weight_map"].items()}
    (links / WEIGHTS_INDEX).write_text(json.dumps(index | {"weight_map": weight_map}))
    return links


def stores_of(folder: Path) -> Path:
    """Where the layer stores of a checkpoint lie: beside it, so that they are made only once."""
    return folder.with_name(f"{folder.name}-stores")


def load_streamed(**options: Any) -> Callable[[Path, str, Path], Any]:
    """A loader of the streamed model with these budgets, and other arguments of its own."""

    def load(folder: Path, device: str, scratch: Path) -> Any:
        from rabbitllm import AutoModel  # the environments of others need not have what it needs

        return AutoModel.from_pretrained(
            folder,
            device=device,
            attn_implementation=attention_of(folder),
            layer_shards_saving_path=stores_of(folder),
            max_seq_len=256,
            show_layer_progress=False,
            **options,
        )

    return load


PEERS: dict[str, Peer] = {
    "stock": Peer(load_stock, "everything on the device"),
    "accelerate-cpu": Peer(
        load_offloaded("cpu"), "layers in host memory", devices=("cuda",), slower=8
    ),
    "accelerate-disk": Peer(load_offloaded("disk"), "layers on disk", slower=8),
    "airllm": Peer(load_airllm, "all on disk", requirements=("airllm==4.0.0",), slower=16),
    "rabbitllm": Peer(load_streamed(device_memory="min"), "layers in host memory"),
    "rabbitllm-lossless": Peer(
        load_streamed(compression="lossless"),
        "what does not fit on disk, compressed",
        devices=("cpu",),
    ),
    "rabbitllm-disk": Peer(
        load_streamed(device_memory="min", host_memory="min"), "layers on disk", slower=8
    ),
    "rabbitllm-disk-lossless": Peer(
        load_streamed(device_memory="min", host_memory="min", compression="lossless"),
        "layers on disk, compressed",
        slower=8,
    ),
}
