from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from harness.measuring.references import REFERENCES
from harness.measuring.references.model import OriginalModel

IDS = torch.randint(3, 160, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["internlm2", "baichuan-13b", "chatglm3", "qwen"])
def model(request, tmp_path_factory) -> OriginalModel:
    folder = tmp_path_factory.mktemp(request.param)
    REFERENCES[request.param].write(folder, 0)
    return OriginalModel(REFERENCES[request.param].reference(folder), torch.device("cpu"))


def test_steps_with_a_cache_are_the_whole_text(model):
    cache = DynamicCache(config=model.config)
    steps = [
        model(IDS[:, :5], cache=cache).logits,
        model(IDS[:, 5:], cache=cache, use_cache=True).logits,
    ]
    assert torch.allclose(torch.cat(steps, 1), model(IDS).logits, atol=1e-5)
    assert [layer.get_seq_length() for layer in cache.layers] == [7] * 4


def test_two_caches_are_two_texts(model):
    one, other = DynamicCache(config=model.config), DynamicCache(config=model.config)
    model(IDS, cache=one)
    first = model(IDS[:, :3], cache=other).logits
    assert torch.equal(first, model(IDS[:, :3]).logits)


def test_greedy_generation_never_ends(model):
    made = model.generate(IDS, torch.ones_like(IDS), max_new_tokens=5)
    assert made.sequences.shape == (2, 12)
    assert torch.equal(made.sequences[:, :7], IDS)
    end = model.decoder.config.get("eos_token_id", -1)
    for step, logits in enumerate(made.logits):
        whole = model(made.sequences[:, : 7 + step]).logits[:, -1]
        assert torch.allclose(logits, whole, atol=1e-5)
        assert end not in made.sequences[:, 7 + step]


def test_padding_does_not_count(model):
    padded = torch.nn.functional.pad(IDS, (3, 0), value=0)
    mask = torch.nn.functional.pad(torch.ones_like(IDS), (3, 0), value=0)
    made = model.generate(padded, mask, max_new_tokens=2)
    plain = model.generate(IDS, torch.ones_like(IDS), max_new_tokens=2)
    assert torch.equal(made.sequences[:, 10:], plain.sequences[:, 7:])
