"""A picture of where each layer's time goes."""

from pathlib import Path
from typing import Any

BARS = {
    -0.2: {"wait": "waiting", "compute": "computing"},
    0.2: {"read": "reading from disk", "copy": "copying to the device"},
}
"""Of a layer: how far from its place -> its times, and what they are called."""


def draw(stats: dict[str, Any], picture: Path) -> None:
    """Saves two bars for each layer: its turn in a forward, and how it got there meanwhile.

    Args:
        stats: `streaming_stats()` of a model loaded with `profiling_mode`.
        picture: a file; its ending is the format.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: nothing has streamed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("--picture needs: pip install 'rabbitllm[bench]'") from error

    stages = stats["stages"]
    if not stages:
        raise ValueError("Nothing streams with these budgets, so there is nothing to draw.")
    figure = Figure(figsize=(max(6.0, len(stages) / 3), 4), layout="constrained")
    axes = figure.subplots()
    for side, kinds in BARS.items():
        bottom = [0.0] * len(stages)
        for kind, label in kinds.items():
            heights = [times[kind] / stats["forwards"] * 1e3 for times in stages.values()]
            if any(heights):
                places = [place + side for place in range(len(stages))]
                axes.bar(places, heights, width=0.4, bottom=bottom, label=label)
            bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    axes.set_xticks(range(len(stages)), list(stages), rotation=90)
    axes.set_ylabel("ms in a forward")
    figure.legend(loc="outside upper center", ncols=4)
    figure.savefig(picture)
