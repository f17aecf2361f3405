"""Show what this machine offers, what stands in the way, and what to do about it.

With --benchmark, also how fast a model runs with each attention backend.
"""

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rabbitllm import __version__
from rabbitllm.errors import first_line, summary
from rabbitllm.utils.installed import mismatch, version_of

EXAMPLE = """\
  rabbitllm doctor
  rabbitllm doctor --benchmark Qwen/Qwen2.5-0.5B-Instruct"""
BACKENDS = ("auto", "sdpa", "eager")
PROMPT_TOKENS, NEW_TOKENS = 32, 16
MOST = 3
"""Things to do that are named, the first first."""
SLOW = 1.0
"""GB/s. A disk below it is the first thing to mend."""
BROKEN = (ImportError, NameError, AttributeError, RuntimeError, OSError)
"""What importing a library raises that does not fit the others."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's arguments."""
    parser.add_argument(
        "--benchmark",
        metavar="MODEL",
        help=f"a folder, or a hub repository: compare {', '.join(BACKENDS)}",
    )


def main(arguments: argparse.Namespace) -> int:
    """Runs the sub-command; returns its exit status."""
    from rabbitllm.cli.tables import table

    width = max(map(len, FINDINGS))
    to_do: list[str] = []
    for name, look in FINDINGS.items():
        finding = _found(look)
        lines = finding.text.splitlines()
        if lines:
            print(f"{name.ljust(width)}  " + f"\n{' ' * width}  ".join(lines), flush=True)
        to_do += [finding.to_do] if finding.to_do else []
    if arguments.benchmark:
        print()
        print(table(_benchmark(arguments.benchmark)))
    print("\nTo do:" if to_do else "\nNothing to do.")
    for number, text in enumerate(to_do[:MOST], 1):
        print(f"{number}. {text}")
    return 0


class Finding(NamedTuple):
    """What was looked at.

    Attributes:
        text: what is there, in lines; empty where nothing need be said.
        to_do: what would mend it, if that is called for.
    """

    text: str
    to_do: str = ""


def _found(look: Callable[[], Finding]) -> Finding:
    """What there is, or why that cannot be told."""
    try:
        return look()
    except BROKEN as error:
        return Finding(f"not known: {summary(error)}")


def _python() -> Finding:
    return Finding(f"{platform.python_version()} on {platform.platform()}")


def _package(name: str) -> Finding:
    """A package's release, from its metadata: one that does not import has a release, too."""
    version = version_of(name)
    return Finding(version or "not installed", "" if version else f"pip install {name}")


def _rabbitllm() -> Finding:
    return Finding(__version__)


def _in_the_way() -> Finding:
    """Why no model can be loaded with these versions."""
    try:
        if why := mismatch():
            return Finding(why, why)
        from transformers import PreTrainedModel  # noqa: F401
    except BROKEN as error:
        pair = " and ".join(f"{name} {version_of(name)}" for name in ("transformers", "torch"))
        return Finding(
            f"transformers does not import: {first_line(error)}",
            f"Mend {pair}: pip install --upgrade torch transformers.",
        )
    return Finding("")


def _cuda() -> Finding:
    import torch

    from rabbitllm.utils.memory import format_size

    if not torch.cuda.is_available():
        if not torch.version.cuda and shutil.which("nvidia-smi"):
            return Finding(
                "no device (this torch is built without CUDA)",
                "There is a driver for an NVIDIA GPU, but this torch is built without CUDA. Choose "
                "a build at https://pytorch.org/get-started.",
            )
        why = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        return Finding(f"no device (this torch is {why})")
    lines = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name, capability = (
            torch.cuda.get_device_name(index),
            torch.cuda.get_device_capability(index),
        )
        lines.append(
            f"cuda:{index} {name}, compute capability {capability[0]}.{capability[1]}, "
            f"{format_size(free)} of {format_size(total)} free"
        )
    return Finding("\n".join(lines))


def _flash_attention() -> Finding:
    from rabbitllm.utils.platform import is_flash_attention_available

    available, reason = is_flash_attention_available()
    return Finding(f"usable on {reason}" if available else f"not usable: {reason}")


def _memory() -> Finding:
    import psutil

    from rabbitllm.utils.memory import available_host_memory, format_size

    free, system = available_host_memory(), psutil.virtual_memory()
    # Without a limit the two differ by what others took in between.
    limited = " (a container's limit)" if free < 0.9 * system.available else ""
    return Finding(
        f"{format_size(free)} available{limited}; the machine has {format_size(system.total)}",
        f"A container's limit leaves {format_size(free)}, and the machine has "
        f"{format_size(system.available)} free: raise it, for weights that stay do not travel."
        if limited and free < system.available / 2
        else "",
    )


def _stores() -> Finding:
    """What lies in the layer stores' folder."""
    from rabbitllm.checkpoint.inventory import find_stores
    from rabbitllm.checkpoint.naming import default_root
    from rabbitllm.utils.memory import format_size

    root = default_root()
    stores = find_stores(root)
    free = shutil.disk_usage(_there(root)).free
    held = format_size(sum(store.nbytes for store in stores))
    unfinished = sum(not store.complete for store in stores)
    return Finding(
        f"{root}: {len(stores)} stores, {held}; {format_size(free)} free",
        f"{unfinished} of the layer stores are incomplete: `rabbitllm cache ls` names them, "
        "`rabbitllm split` finishes one, and `rabbitllm cache rm` removes it."
        if unfinished
        else "",
    )


def _disk() -> Finding:
    """How fast the disk of the layer stores reads."""
    from rabbitllm.checkpoint.naming import default_root
    from rabbitllm.measure.limits import PROBE, folder_bandwidth

    folder = _there(default_root())
    if shutil.disk_usage(folder).free < 2 * PROBE:
        return Finding(
            "not measured, for the disk is nearly full",
            f"Make room on the disk of {folder}, or set RABBITLLM_CACHE to a folder elsewhere.",
        )
    try:
        rate = folder_bandwidth(folder)
    except OSError as error:
        return Finding(
            f"not measured: {error}", "Set RABBITLLM_CACHE to a folder that can be written to."
        )
    return Finding(
        f"{rate:.2f} GB/s",
        f"The disk of {folder} reads {rate:.2f} GB/s, {15 / rate:.0f} s for each token of a 7B "
        "model that streams from it: HF_HOME and RABBITLLM_CACHE name a faster one."
        if rate < SLOW
        else "",
    )


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _token() -> Finding:
    from huggingface_hub import get_token

    present = "present" if get_token() else "none (only gated and private repositories need one)"
    return Finding(present)


def _compatibility() -> Finding:
    import torch

    from rabbitllm.compatibility import remarks

    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return Finding("\n".join(remarks(version_of("transformers"), devices)))


def _only_elsewhere() -> Finding:
    """What only Linux, or only POSIX, has, and is done without here."""
    lacking = {
        "direct reads: weights come through the page cache": hasattr(os, "O_DIRECT"),
        "reads at a place: a file of weights is opened nine times": hasattr(os, "preadv"),
        "limits of containers: 'auto' sees the machine's memory alone": Path("/proc").is_dir(),
        "forks: a cell of the matrix imports all anew, and what it abandons stays": hasattr(
            os, "fork"
        ),
    }
    return Finding("\n".join(text for text, there in lacking.items() if not there))


PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "huggingface_hub")
FINDINGS: dict[str, Callable[[], Finding]] = {
    "Python": _python,
    "rabbitllm": _rabbitllm,
    **{name: partial(_package, name) for name in PACKAGES},
    "In the way": _in_the_way,
    "CUDA": _cuda,
    "FlashAttention 2": _flash_attention,
    "Host memory": _memory,
    "Layer stores": _stores,
    "Direct reads": _disk,
    "Hub token": _token,
    "Compatibility": _compatibility,
    "Not here": _only_elsewhere,
}
"""What is looked at, in order, and how."""


def _benchmark(model_id: str) -> list[dict[str, str]]:
    """The model once with each backend, greedily, from the same prompt."""
    import torch

    from rabbitllm import AutoModel
    from rabbitllm.measure.generation import time_generation

    rows, first = [], None
    for backend in BACKENDS:
        print(f"Running {model_id} with {backend}", file=sys.stderr)
        model = AutoModel.from_pretrained(
            model_id, attn_implementation=backend, show_layer_progress=False
        )
        generator = torch.Generator().manual_seed(0)
        vocabulary = model.config.get_text_config().vocab_size
        prompt = torch.randint(vocabulary, (1, PROMPT_TOKENS), generator=generator)
        time_generation(model, prompt.to(model.device), 2)
        timing = time_generation(model, prompt.to(model.device), NEW_TOKENS)
        first = first or timing.tokens
        rows.append(
            {
                "asked": backend,
                "runs": model.active_attention_implementation,
                "prompt, s": f"{timing.prefill_seconds:.2f}",
                "tokens/s": f"{timing.tokens_per_second():.2f}",
                "same tokens as the first": _agreement(timing.tokens, first),
            }
        )
        del model
    return rows


def _agreement(tokens: list[int], others: list[int]) -> str:
    """How long two greedy answers agree: backends round differently, which may tip a close race."""
    same = next(
        (i for i, pair in enumerate(zip(tokens, others, strict=True)) if pair[0] != pair[1]), None
    )
    return "all" if same is None else f"{same} of {len(tokens)}"
