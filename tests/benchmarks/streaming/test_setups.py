from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.streaming import setups


@pytest.mark.parametrize(("share", "streaming_layers"), [(0, 4), (0.25, 3), (1, 0)])
def test_a_budget_holds_a_share_of_the_layers(
    folder: Path, share: float, streaming_layers: int
) -> None:
    model = setups.streamed(folder, **setups.budget(folder, share))
    sizes = {n: p.numel() for n, p in model.named_parameters() if ".layers." in n}
    streamed = sum(sizes[n] for n, p in model.named_parameters() if n in sizes and p.is_meta)
    # On CPU blocks stream in parts, so that up to the two more stay that would take turns.
    layer = sum(sizes.values()) / 4
    assert (streamed > 0) == (streaming_layers > 0)
    assert (streaming_layers - 2) * layer < streamed <= streaming_layers * layer or not streamed
    assert model.streaming_plan.places["lm_head"].resident
