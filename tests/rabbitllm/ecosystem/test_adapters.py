"""LoRA adapters of PEFT on a streamed model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from transformers import PreTrainedModel

from rabbitllm import StreamedModel

TARGETS = ["q_proj", "down_proj"]


@pytest.fixture(scope="module")
def adapters(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Path]:
    """Two saved adapters whose effect is far from nothing."""
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)
        folders.append(tmp_path_factory.mktemp("adapter"))
        peft.get_peft_model(stock(checkpoint()), config).save_pretrained(folders[-1])
    return folders


@pytest.fixture
def pair(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    adapters: list[Path],
) -> tuple[peft.PeftModel, peft.PeftModel]:
    """The first adapter on the streamed model, and on stock."""
    models = streamed(checkpoint()), stock(checkpoint())
    return tuple(peft.PeftModel.from_pretrained(model, adapters[0]).eval() for model in models)


def test_the_logits_are_those_of_stock_with_the_adapter(
    pair: tuple[peft.PeftModel, peft.PeftModel], prompt: torch.Tensor
) -> None:
    model, reference = pair
    with torch.no_grad():
        for _ in range(2):
            logits = model(prompt).logits
            assert torch.equal(logits, reference(prompt).logits)
        with model.disable_adapter(), reference.disable_adapter():
            plain = model(prompt).logits
            assert torch.equal(plain, reference(prompt).logits)
    assert (logits - plain).abs().max() > 1e-3
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(prompt, **options), reference.generate(prompt, **options))


def test_adapters_are_resident_and_nothing_else_is(
    pair: tuple[peft.PeftModel, peft.PeftModel], prompt: torch.Tensor
) -> None:
    model, _ = pair
    model(prompt)
    streamed = 0
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert not parameter.is_meta, name
        elif ".layers." in name:
            streamed += parameter.is_meta
    assert streamed


def test_adapters_can_be_added_and_switched(
    pair: tuple[peft.PeftModel, peft.PeftModel], adapters: list[Path], prompt: torch.Tensor
) -> None:
    outputs = []
    for model in pair:
        model.load_adapter(adapters[1], "second")
        with torch.no_grad():
            first = model(prompt).logits
            model.set_adapter("second")
            outputs.append((first, model(prompt).logits))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])
    assert not torch.equal(*outputs[0])


def test_an_adapter_can_be_saved(
    pair: tuple[peft.PeftModel, peft.PeftModel],
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
) -> None:
    model, _ = pair
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(stock(checkpoint()), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(model(prompt).logits, again(prompt).logits)


def test_merging_is_refused(pair: tuple[peft.PeftModel, peft.PeftModel]) -> None:
    with pytest.raises(RuntimeError, match="only while its layer runs"):
        pair[0].merge_and_unload()


def test_a_no_op_move_brings_the_adapter_along(
    pair: tuple[peft.PeftModel, peft.PeftModel], prompt: torch.Tensor
) -> None:
    model, reference = pair
    assert model.to("cpu") is model
    with torch.no_grad():
        assert torch.equal(model(prompt).logits, reference(prompt).logits)
    with pytest.raises(RuntimeError, match="stays on cpu"):
        model.to(torch.bfloat16)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside"])
def test_a_folder_of_an_adapter_loads_as_in_stock(
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    adapters: list[Path],
    copied: Callable[..., Path],
    prompt: torch.Tensor,
    beside: bool,
) -> None:
    folder, base = adapters[0], copied()
    if beside:
        for file in folder.iterdir():
            shutil.copy(file, base)
        folder = base
    with torch.no_grad():
        expected = stock(folder)(prompt).logits
        assert torch.equal(streamed(folder)(prompt).logits, expected)
