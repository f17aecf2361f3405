"""Show what this machine offers, and what stands in the way.

With --benchmark, also how fast a model runs with each attention backend.
"""

import argparse
import platform
import shutil
import sys
from pathlib import Path

from rabbitllm import __version__
from rabbitllm.errors import first_line
from rabbitllm.utils.installed import mismatch, version_of

EXAMPLE = """\
  rabbitllm doctor
  rabbitllm doctor --benchmark Qwen/Qwen2.5-0.5B-Instruct"""
BACKENDS = ("auto", "sdpa", "eager")
PROMPT_TOKENS, NEW_TOKENS = 32, 16


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

    findings = {
        "Python": f"{platform.python_version()} on {platform.platform()}",
        **_versions(),
        "CUDA": _cuda(),
        "FlashAttention 2": _flash_attention(),
        "Host memory": _memory(),
        "Layer stores": _stores(),
        "Hub token": _token(),
        "Compatibility": _compatibility(),
    }
    width = max(map(len, findings))
    for name, finding in findings.items():
        lines = finding.splitlines()
        print(f"{name.ljust(width)}  " + f"\n{' ' * width}  ".join(lines))
    if arguments.benchmark:
        print()
        print(table(_benchmark(arguments.benchmark)))
    return 0


def _versions() -> dict[str, str]:
    """Name -> version, by what is installed: what does not import has a version all the same."""
    names = ("torch", "transformers", "accelerate", "safetensors", "huggingface_hub")
    found = {name: version_of(name) for name in names}
    return (
        {"rabbitllm": __version__} | found | ({"In the way": why} if (why := _in_the_way()) else {})
    )


def _in_the_way() -> str:
    """Why no model can be loaded with these versions; empty if one can."""
    try:
        return mismatch()
    except ImportError as error:
        return f"transformers does not import: {first_line(error)}"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        why = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        return f"no device (this torch is {why})"
    from rabbitllm.utils.memory import format_size

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
    return "\n".join(lines)


def _flash_attention() -> str:
    from rabbitllm.utils.platform import is_flash_attention_available

    available, reason = is_flash_attention_available()
    return f"usable on {reason}" if available else f"not usable: {reason}"


def _memory() -> str:
    import psutil

    from rabbitllm.utils.memory import available_host_memory, format_size

    free, system = available_host_memory(), psutil.virtual_memory()
    # Without a limit the two differ by what others took in between.
    limited = " (a container's limit)" if free < 0.9 * system.available else ""
    return f"{format_size(free)} available{limited}; the machine has {format_size(system.total)}"


def _stores() -> str:
    """What lies in the layer stores' folder, and how fast its disk reads."""
    from rabbitllm.checkpoint.inventory import find_stores
    from rabbitllm.checkpoint.naming import default_root
    from rabbitllm.utils.memory import format_size

    root = default_root()
    stores = find_stores(root)
    there = next(path for path in (root, *root.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    held = format_size(sum(store.nbytes for store in stores))
    return (
        f"{root}: {len(stores)} stores, {held}; {format_size(free)} free\n"
        f"direct reads there: {_disk_speed(there, free)}"
    )


def _disk_speed(folder: Path, free: int) -> str:
    from rabbitllm.measure.limits import PROBE, folder_bandwidth

    if free < 2 * PROBE:
        return "not measured, for the disk is nearly full"
    try:
        return f"{folder_bandwidth(folder):.2f} GB/s"
    except OSError as error:
        return f"not measured: {error}"


def _token() -> str:
    from huggingface_hub import get_token

    return "present" if get_token() else "none (only gated and private repositories need one)"


def _compatibility() -> str:
    import torch

    from rabbitllm.compatibility import remarks

    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return "\n".join(remarks(version_of("transformers"), devices))


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
