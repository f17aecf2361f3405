"""The setups that are measured: how each loads a model, and what it generates."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.engines import attention_of, dequantised, stores_of
from rabbitllm import AutoModel
from rabbitllm.prepare import Prepared, prepare
from rabbitllm.streaming.working import Work, read_geometry, working_bytes

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
MEMORY = "device_memory" if DEVICE.type == "cuda" else "host_memory"
ATTENTION = "sdpa"
"""torch's own attention, without its cuDNN backend: on a Hopper GPU (torch 2.11) that one spends
48 ms of host time on a plan for every new length, so on every token, whoever runs the model."""
TOKENS = 128
"""That budgets keep room for, where no run of a setup takes more."""


@dataclass(frozen=True)
class Run:
    """One generation: a line of the results.

    Attributes:
        name: as benchmarks.streaming.table knows it.
        prompt: tokens of each sequence.
        batch: sequences.
        new_tokens: generated for each.
        repeats: generations; all but the last warm up what depends on the prompt's length.
        options: of `generate`.
    """

    name: str
    prompt: int = 32
    batch: int = 1
    new_tokens: int = 64
    repeats: int = 1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """A model as it is loaded, and what it runs.

    Attributes:
        load: makes it from the checkpoint's folder.
        runs: one after the other.
        cyclic: of a checkpoint that repeats what it reads, instead of random weights.
        turns: that each run takes with the stock model, in the same process: where nothing
            streams, a token is bound by the host, whose pace wanders by a third within seconds.
        gpu: it takes one.
    """

    load: Callable[[Path], Any]
    runs: tuple[Run, ...]
    cyclic: bool = False
    turns: int = 0
    gpu: bool = False


def stock(folder: Path) -> Any:
    """The stock model, fully on the device, and dequantised."""
    return AutoModelForCausalLM.from_pretrained(
        folder,
        config=dequantised(folder),
        dtype="auto",
        device_map={"": DEVICE},
        attn_implementation=attention_of(folder),
    )


def streamed(folder: Path, **options: Any) -> Any:
    """The streamed model with these budgets, and other arguments of its own."""
    return AutoModel.from_pretrained(
        folder,
        device=str(DEVICE),
        attn_implementation=attention_of(folder),
        show_layer_progress=False,
        **{"max_seq_len": TOKENS} | options,
    )


def from_disk(folder: Path, **options: Any) -> Any:
    """The streamed model with all layers on disk."""
    staging = {"host_memory": "min"} if DEVICE.type == "cuda" else {}
    return streamed(folder, **budget(folder, 0) | staging | options)


def prepared(folder: Path) -> Prepared:
    """The model without its weights: what budgets are counted from."""
    return prepare(folder, None, DEVICE, "auto", attention_of(folder), False)


def budget(folder: Path, share: float, tokens: int = TOKENS) -> dict[str, int]:
    """A budget that holds this share of the layers, and everything else but embedding rows.

    Args:
        folder: of the checkpoint.
        share: 0 to 1.
        tokens: that it keeps room for besides.
    """
    staged = prepared(folder).staged
    layers = [size for name, size in staged.sizes.items() if ".layers." in name]
    slots = [stage for stage in staged.stages if not stage.slotless]
    others = [stage.nbytes for stage in slots if ".layers." not in stage.name]
    kept = round(share * len(layers)) + 2  # two take turns
    geometry = read_geometry(staged.model.config)
    working = working_bytes(geometry, staged.dtype, DEVICE, Work(1, tokens))
    return {MEMORY: sum(others) + kept * max(layers) + working, "max_seq_len": tokens}


SETUPS: dict[str, Setup] = {
    "stock": Setup(stock, (Run("stock"), Run("stock-prefill", 2048, 1, 2, repeats=3))),
    "fits": Setup(streamed, (Run("fits"),), turns=7),
    "host": Setup(
        lambda f: streamed(f, **budget(f, 0, tokens=4096)),
        (Run("host"), Run("prefill", 2048, 1, 2, repeats=3), Run("batch-32", batch=32)),
        gpu=True,
    ),
    "half": Setup(lambda f: streamed(f, **budget(f, 0.5)), (Run("half"),)),
    "4GiB": Setup(lambda f: streamed(f, device_memory="4GiB"), (Run("4GiB"),), gpu=True),
    "lookup": Setup(
        lambda f: streamed(f, **budget(f, 0, tokens=512)),
        (
            Run("repetitive", 256),
            Run("prompt-lookup", 256, options={"prompt_lookup_num_tokens": 10}),
        ),
        cyclic=True,
    ),
    "disk": Setup(from_disk, (Run("disk", new_tokens=3),)),
    "disk-lossless": Setup(
        lambda f: from_disk(f, compression="lossless", layer_shards_saving_path=stores_of(f)),
        (Run("disk-lossless", new_tokens=3),),
    ),
}
