from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rabbitllm.prepare import RESIDENT, prepare

BIAS = "model.layers.3.mlp.gate.e_score_correction_bias"


def test_a_layer_store_keeps_buffers_with_the_rest_and_encodes_neither(
    checkpoint: Callable[..., Path],
) -> None:
    folder = checkpoint("deepseek_v3", torch.bfloat16)
    prepared = prepare(folder, None, torch.device("cpu"), "auto", "auto", False)
    groups, whole = prepared.location.groups, prepared.location.whole
    assert {BIAS, "model.norm.weight"} <= set(groups[RESIDENT])
    assert BIAS not in groups["model.layers.3"]
    assert sorted(name for names in groups.values() for name in names) == sorted(
        prepared.model.state_dict()
    )
    assert "model.layers.3.mlp.gate.weight" in whole
    assert "model.norm.weight" not in whole
