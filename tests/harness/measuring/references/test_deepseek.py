from __future__ import annotations

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from harness.measuring.parity import compare
from harness.measuring.references import deepseek
from harness.measuring.references.experts import limited
from harness.measuring.references.published import Published
from tests.harness.measuring.references.published_cases import CASES

IDS = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(bias, tmp_path):
    """A tiny DeepSeek-V3 with the same bias for all experts."""
    torch.manual_seed(1)
    config = transformers.DeepseekV3Config(**CASES["deepseek_v3"].config)
    transformers.DeepseekV3ForCausalLM(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for key, tensor in weights.items():
        if key.endswith("gate.weight"):
            tensor.normal_()
        elif key.endswith("e_score_correction_bias"):
            tensor.fill_(bias)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def off_stock(folder):
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        logits = stock(IDS, use_cache=False).logits
    return compare(Published(folder)(IDS), logits)["relative"]


@pytest.mark.parametrize("bias", [-0.9, 2.0])
def test_experts_of_other_groups_are_never_chosen(folder):
    assert off_stock(folder) <= 2e-5


@pytest.mark.parametrize(("bias", "matters"), [(-0.9, True), (2.0, False)])
def test_the_score_0_for_them_matters_where_scores_are_negative(folder, matters, monkeypatch):
    """Transformers had it before 5.6, as the first published code did."""
    monkeypatch.setattr(deepseek, "limited", lambda *args: limited(*args[:-1], 0.0))
    assert (off_stock(folder) >= 1e-3) is matters


def test_groups_are_chosen_by_the_sum_of_their_best():
    scores = torch.tensor([0.8, 0.1, 0.2, 0.6, 0.5, 0.3])
    assert limited(scores, 3, 1, 1, 0.0).tolist() == pytest.approx([0.8, 0.1, 0, 0, 0, 0])
    assert limited(scores, 2, 1, 2, 0.0).tolist() == pytest.approx([0, 0, 0, 0.6, 0.5, 0.3])
