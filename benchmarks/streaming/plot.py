"""Tokens/s against the size of the model and against the budget: the cost is linear in bytes.

    python -m benchmarks.streaming.plot --shape qwen2-7b --folder /data/qwen2-7b --out sweep.svg

Models of the first layers only, all of which stream, and the whole model with a share of its layers
resident. The checkpoint is made if absent. The figures are saved beside the picture, as JSON lines.
"""

import argparse
import gc
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.checkpoints import SHAPES, write_checkpoint, write_shorter
from benchmarks.streaming.measure import measure_run
from benchmarks.streaming.setups import DEVICE, MEMORY, Run, budget, streamed

PARTS = 4
"""Points of each sweep."""
MOVED = "bytes_to_device" if DEVICE.type == "cuda" else "bytes_from_disk"


def measure_one(folder: Path, share: float, run: Run) -> dict[str, Any]:
    """One point: budget, bytes that move for a token, and tokens/s."""
    memory = budget(folder, share)
    model = streamed(folder, **memory)
    figures = measure_run(model, run)
    layers = model.config.get_text_config().num_hidden_layers
    del model
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    return {
        "layers": layers,
        "share_resident": share,
        "budget_bytes": memory[MEMORY],
        "moved_bytes": figures[MOVED],
        "tokens_per_second": figures["tokens_per_second"],
    }


def sweep(folder: Path, layers: int, run: Run) -> list[dict[str, Any]]:
    """Models of more and more layers, all streaming; then fewer and fewer that stream.

    Args:
        folder: the whole checkpoint.
        layers: that it has.
        run: what each model generates.
    """
    points = []
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for part in range(1, PARTS):
            count = layers * part // PARTS
            shorter = write_shorter(folder, Path(scratch) / str(count), count)
            points.append(measure_one(shorter, 0.0, run))
    return points + [measure_one(folder, part / PARTS, run) for part in range(PARTS)]


def draw(points: Sequence[dict[str, Any]], title: str, picture: Path) -> None:
    """Three panels: by layers, by budget, and the time of a token by the bytes that move for it."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    by_layers, by_budget, by_bytes = figure.subplots(1, 3)
    sizes = [point for point in points if not point["share_resident"]]
    whole = [point for point in points if point["layers"] == max(p["layers"] for p in points)]
    for axes, chosen, key, scale, label in (
        (by_layers, sizes, "layers", 1, "layers, all streaming"),
        (by_budget, whole, "budget_bytes", 1e9, "budget, GB"),
    ):
        axes.plot(
            [point[key] / scale for point in chosen],
            [point["tokens_per_second"] for point in chosen],
            marker="o",
        )
        axes.set(xlabel=label, ylabel="tokens/s", ylim=(0, None))
    moved = [point["moved_bytes"] / 1e9 for point in points]
    seconds = [1 / point["tokens_per_second"] for point in points]
    # Least squares through the origin: what moves is all that costs.
    pace = sum(x * y for x, y in zip(moved, seconds, strict=True)) / sum(x * x for x in moved)
    by_bytes.scatter(moved, seconds)
    by_bytes.plot([0, max(moved)], [0, pace * max(moved)], label=f"{1 / pace:.2f} GB/s")
    by_bytes.set(xlabel="GB that move for a token", ylabel="s for a token", ylim=(0, None))
    by_bytes.legend()
    figure.suptitle(title)
    figure.savefig(picture)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures, draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="qwen2-7b")
    parser.add_argument("--folder", type=Path, required=True, help="the checkpoint, made if absent")
    parser.add_argument("--out", type=Path, required=True, help="the picture (.svg, .png, .pdf)")
    parser.add_argument("--new-tokens", type=int, default=8, help="for each point (%(default)s)")
    given = parser.parse_args(arguments)
    torch.backends.cuda.enable_cudnn_sdp(False)
    config = SHAPES[given.shape]
    write_checkpoint(config, given.folder, torch.bfloat16, str(DEVICE))
    points = sweep(given.folder, config.num_hidden_layers, Run("sweep", 32, 1, given.new_tokens))
    given.out.with_suffix(".jsonl").write_text("".join(json.dumps(p) + "\n" for p in points))
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    draw(points, f"{given.shape} on {name}", given.out)


if __name__ == "__main__":
    main()
