"""ALiBi by inputs: slopes, masks, and the backends that take them."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import StaticCache

from rabbitllm.checkpoint.legacy import alibi

TOLERANCE = 2e-5


@pytest.fixture
def loaded(original, streamed):
    folder, reference = original("baichuan-13b")
    return streamed(folder), reference


def test_slopes_of_a_power_of_two():
    assert alibi.slopes(8).tolist() == [2**-n for n in range(1, 9)]


def test_slopes_of_another_number_take_every_other_one_of_the_next_power():
    assert alibi.slopes(12).tolist() == pytest.approx(
        [2**-n for n in range(1, 9)] + [2**-n for n in (0.5, 1.5, 2.5, 3.5)]
    )
    assert alibi.slopes(40)[32:].tolist() == pytest.approx(alibi.slopes(64)[0:16:2].tolist())


def test_the_mask_of_one_sequence():
    lowest = torch.finfo(torch.float32).min
    mask = alibi.mask(torch.tensor([0.5]), torch.tensor([1, 2]), 4, None, torch.float32)
    assert mask.tolist() == [[[[-0.5, 0.0, lowest, lowest], [-1.0, -0.5, 0.0, lowest]]]]


def test_the_mask_hides_padding():
    given = torch.tensor([[0, 1, 1], [1, 1, 1]])
    mask = alibi.mask(alibi.slopes(2), torch.tensor([2]), 4, given, torch.float32)
    hidden = mask == torch.finfo(torch.float32).min
    assert mask.shape == (2, 2, 1, 4)
    assert hidden[:, 0, 0].tolist() == [[True, False, False, True], [False, False, False, True]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_of_four_dimensions_says_all(dtype):
    visible = torch.tensor([[[[True, False], [True, True]]]])
    given = visible if dtype is torch.bool else torch.zeros(1, 1, 2, 2)
    if dtype is not torch.bool:
        given = given.masked_fill(~visible, float("-inf"))
    mask = alibi.mask(alibi.slopes(2), torch.arange(2), 2, given, torch.float16)
    lowest = torch.finfo(torch.float16).min
    assert mask.tolist() == [
        [
            [[0.0, lowest], [-0.0625, 0.0]],
            [[0.0, lowest], [-0.00390625, 0.0]],
        ]
    ]


def test_the_mask_is_finite_in_half_precision():
    given = torch.zeros(1, 4096)
    mask = alibi.mask(alibi.slopes(40), torch.arange(4000, 4096), 4096, given, torch.float16)
    assert torch.isfinite(mask).all()


def test_positional_arguments(loaded, ids, run, distance):
    model, reference = loaded
    mask = torch.ones_like(ids)
    positions = torch.arange(ids.shape[1])[None]
    assert distance(run(model, ids, mask, positions), reference(ids)) <= TOLERANCE
    with torch.no_grad():
        states = model.model(ids, mask).last_hidden_state
        assert distance(model.lm_head(states), reference(ids)) <= TOLERANCE


def test_embeddings_for_input(loaded, ids, run, distance):
    model, reference = loaded
    embedded = reference.embed(ids)
    assert distance(run(model, inputs_embeds=embedded), reference(ids)) <= TOLERANCE


def test_a_static_cache_of_the_users(loaded, ids, distance):
    model, reference = loaded
    cache = StaticCache(config=model.config, max_cache_len=40)
    with torch.no_grad():
        parts = [model(part, past_key_values=cache).logits for part in ids.split([10, 1, 6, 7], 1)]
    assert distance(torch.cat(parts, dim=1), reference(ids)) <= TOLERANCE


def test_a_backend_that_cannot_take_the_mask_is_replaced_with_the_reason(
    original, streamed, caplog, ids, run, distance
):
    folder, reference = original("baichuan-13b")
    with caplog.at_level(logging.WARNING, logger="rabbitllm"):
        model = streamed(folder, attn_implementation="flash_attention_2")
    assert model.active_attention_implementation == "sdpa"
    assert any(alibi.WHY in record.message for record in caplog.records)
    assert distance(run(model, ids), reference(ids)) <= TOLERANCE


def test_automatic_choice(original, streamed, caplog):
    with caplog.at_level(logging.INFO, logger="rabbitllm"):
        model = streamed(original("baichuan-13b")[0], attn_implementation="auto")
    assert model.active_attention_implementation == "sdpa"
    assert f"Flash Attention not available: {alibi.WHY}. Using SDPA" in caplog.messages


def test_a_backend_set_later_is_refused(original, streamed, ids, run):
    model = streamed(original("baichuan-13b")[0])
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match=r"flex_attention.*ALiBi"):
        run(model, ids)
