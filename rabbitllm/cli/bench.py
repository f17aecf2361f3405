"""Measure how fast a model runs, beside what this machine's wires allow in the same run.

The table reads as llama-bench's: pp128 is a prompt of 128 tokens, tg32 are 32 tokens after it.
Where the whole model fits, stock transformers runs as well. GB/s are weights that moved; the limit
is the slowest of the wires they took, and of the memory that computing reads them from. "Plan's" is
what `rabbitllm plan` expects: before it ran, by what is to move.
"""

import argparse
import gc
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rabbitllm.cli.options import (
    add_model_arguments,
    budgets_from,
    load,
    positive,
    prepare_only,
    sharing_from,
)
from rabbitllm.cli.tables import FORMATS, render

if TYPE_CHECKING:
    import torch

    from rabbitllm.measure.limits import Limits
    from rabbitllm.measure.throughput import Throughput
    from rabbitllm.prepare import Prepared

EXAMPLE = "  rabbitllm bench Qwen/Qwen2.5-7B-Instruct --device-memory 4GiB -p 512 -n 64"
PICTURED = 8
"""Tokens of the prompt of the timed layers."""
PICTURES = (".png", ".svg", ".pdf")
ROOM = 1.25
"""Stock transformers runs where this many times the model's bytes are free."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's arguments."""
    add_model_arguments(parser)
    for flag, name, default, text in (
        ("-p", "--prompt-tokens", 128, "tokens of the prompt"),
        ("-n", "--new-tokens", 32, "tokens generated after it"),
        ("-r", "--repeats", 3, "repetitions"),
    ):
        parser.add_argument(
            flag, name, type=positive, default=default, metavar="N", help=f"{text} (%(default)s)"
        )
    parser.add_argument("--no-stock", action="store_true", help="leave stock transformers out")
    parser.add_argument("--format", choices=FORMATS, default="md", help="(%(default)s)")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="also run with timed layers, and draw where each one's time goes (.png, .svg, .pdf)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Runs the sub-command; returns its exit status."""
    from rabbitllm.checkpoint.tensors import files_of
    from rabbitllm.measure.limits import measure_limits
    from rabbitllm.measure.prediction import predict
    from rabbitllm.streaming.picking import pick_devices
    from rabbitllm.streaming.several import place_on

    devices = pick_devices(arguments.device)
    _check_picture(arguments.picture)
    prepared = prepare_only(arguments, devices[0], arguments.attn_implementation)
    _check_length(arguments.prompt_tokens + arguments.new_tokens + 1, prepared)
    location = prepared.location
    encoded = location.encoded(arguments.compression, arguments.store)
    staged = prepared.staged.stored(encoded)
    how = (
        budgets_from(arguments, devices),
        arguments.device == "auto",
        sharing_from(arguments, devices, location),
    )
    placed, plan = place_on(staged, *how)
    codec = location.worth_encoding(arguments.compression, bool(plan.moving("disk", "host")))
    located = location.locate(arguments.store, False, codec)
    stored = prepared.staged.stored({n: entry for n, entry in located.items() if not entry.plain})
    if stored.on_disk != staged.on_disk:  # the store has just been made
        placed, plan = place_on(stored, *how)
    used = list(plan.device_bytes)
    files = sorted(files_of(located.values()))
    limits = measure_limits(used, prepared.staged.dtype, files)
    print(f"Limits on {_names(used)}: {limits.describe()}", file=sys.stderr)
    expected = predict(placed, plan, limits).seconds
    results = _measure(load(arguments), "streamed", arguments, prepared, limits, expected)
    _free_memory(used[0])
    if not arguments.no_stock and _stock_fits(prepared, used[0]):
        stock = _stock(prepared, used[0])
        results += _measure(stock, "stock", arguments, prepared, limits.of(1, len(used)))
    print(_shown(results, arguments.format, limits, used))
    if arguments.picture:
        _draw(arguments)
    return 0


def _check_picture(picture: Path | None) -> None:
    """Before anything is measured.

    Raises:
        ValueError: it could not be written.
    """
    if picture is not None and picture.suffix not in PICTURES:
        raise ValueError(f"--picture {picture} has to end in {', '.join(PICTURES)}.")
    if picture is not None and not picture.parent.is_dir():
        raise ValueError(
            f"--picture {picture}: there is no folder {picture.parent}. Make it first."
        )


def _check_length(tokens: int, prepared: "Prepared") -> None:
    """Before anything is measured.

    Raises:
        ValueError: the model has positions for fewer tokens.
    """
    text = prepared.model.config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise ValueError(
            f"-p and -n make {tokens} tokens, with the one that is not timed, but this model has "
            f"positions for {most}. Lower them."
        )


def _measure(
    model: Any,
    runs: str,
    arguments: argparse.Namespace,
    prepared: "Prepared",
    limits: "Limits",
    expected: float = 0.0,
) -> "list[tuple[dict[str, str], Throughput]]":
    """Both tests of a model, each with what it is called.

    Args:
        model: a streamed or a stock one.
        runs: which of the two.
        arguments: the parsed ones.
        prepared: the model without its weights.
        limits: of the wires that its weights take.
        expected: seconds that a token is predicted to take; 0 if nothing is predicted.
    """
    from rabbitllm.measure.throughput import Workload, measure_throughput

    print(f"Running {arguments.model}, {runs}", file=sys.stderr)
    work = Workload(arguments.prompt_tokens, arguments.new_tokens, arguments.repeats)
    labels = {
        "model": Path(arguments.model).name,
        "runs": runs,
        "attention": str(model.config._attn_implementation),
    }
    computed = prepared.staged.computed_bytes
    tests = measure_throughput(model, work, limits, computed, expected)
    return [(labels, test) for test in tests]


def _shown(
    results: "list[tuple[dict[str, str], Throughput]]",
    form: str,
    limits: "Limits",
    devices: "Sequence[torch.device]",
) -> str:
    if form == "md":
        return render([labels | _cells(test) for labels, test in results], form)
    rows = [
        labels
        | asdict(test)
        | {
            "tokens_per_second": test.tokens_per_second,
            "sd": test.deviation,
            "device": _names(devices),
            "limits": asdict(limits),
        }
        for labels, test in results
    ]
    return render(rows, form)


def _cells(test: "Throughput") -> dict[str, str]:
    mean, limit = test.tokens_per_second, test.limit_tokens_per_second
    planned = test.planned_tokens_per_second
    return {
        "test": test.test,
        "t/s": f"{mean:.2f} ± {test.deviation:.2f}",
        "GB/s": f"{test.gb_per_second:.2f}" if test.gb_per_second else "-",
        "% of limit": f"{mean / limit:.0%}" if limit else "-",
        "% of plan's": f"{mean / planned:.0%}" if planned else "-",
    }


def _names(devices: "Sequence[torch.device]") -> str:
    import torch

    if devices[0].type != "cuda":
        return f"CPU, threads: {torch.get_num_threads()}"
    names = Counter(map(torch.cuda.get_device_name, devices))
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in names.items())


def _free_memory(device: "torch.device") -> None:
    """Gives back what a model that is gone has held."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _stock_fits(prepared: "Prepared", device: "torch.device") -> bool:
    """Whether there is a stock model of this checkpoint, and memory for all of it."""
    from rabbitllm.checkpoint.config import read_fields
    from rabbitllm.checkpoint.legacy import row_of
    from rabbitllm.streaming.placement import total_budget

    free = total_budget("auto", device)
    return row_of(read_fields(prepared.location.folder)) is None and (
        ROOM * prepared.staged.nbytes < int(free)
    )


def _stock(prepared: "Prepared", device: "torch.device") -> Any:
    import transformers

    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        prepared.location.folder,
        dtype=prepared.staged.dtype,
        attn_implementation=prepared.model.active_attention_implementation,
    )
    return model.to(device).eval()


def _draw(arguments: argparse.Namespace) -> None:
    """Runs the model once more, with timed layers, and saves the picture."""
    from rabbitllm.measure.generation import time_generation
    from rabbitllm.measure.picture import draw
    from rabbitllm.measure.throughput import random_prompt

    model = load(arguments, profiling_mode=True)
    time_generation(model, random_prompt(model, PICTURED), arguments.new_tokens)
    draw(model.streaming_stats(), arguments.picture)
    print(f"Drawn: {arguments.picture}", file=sys.stderr)
