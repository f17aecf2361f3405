from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import rabbitllm
from rabbitllm import BudgetError, CheckpointError, StreamedModel
from rabbitllm.checkpoint.index import read_index
from rabbitllm.checkpoint.store import LayerStore
from rabbitllm.streaming.weights import ALIGNMENT
from tests.patience import PATIENCE

CPU = torch.device("cpu")
ARCHITECTURES = ["llama", "llama-tied", "mixtral", "gemma2", "phi", "deepseek_v3"]
LAYERS = [f"model.layers.{i}" for i in range(4)]
GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets hold weights alone: no room is kept for the cache and activations."""
    monkeypatch.setattr("rabbitllm.streaming.placement.working_bytes", lambda *_: 0)


def layer_bytes(model: PreTrainedModel, prefix: str) -> int:
    """Bytes of a stage's buffer, each weight padded; experts are others, and routers stay."""
    apart = (".experts.", ".gate.")
    return sum(
        -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT
        for name, parameter in model.named_parameters()
        if name.startswith(f"{prefix}.") and not any(part in name for part in apart)
    )


def check_residency(model: StreamedModel) -> None:
    """The planned stages hold weights, and no others do."""
    plan = model.streaming_plan
    for name, parameter in model.named_parameters(remove_duplicate=False):
        inside = [each for each in plan.places if name.startswith(f"{each}.")]
        stage = max(inside, key=len, default=None)
        if ".gate." in name:  # routers stay
            stage = None
        if name == "lm_head.weight" and stage is None:  # tied: it goes with the embedding
            stage = "model.embed_tokens" if "model.embed_tokens" in plan.places else None
        resident = stage is None or plan.places[stage].resident
        assert parameter.is_meta != resident, name


def watch_addresses(model: nn.Module) -> set[int]:
    """Collects where the weights lie that modules run with, as remainders of 64."""
    found: set[int] = set()

    def note(module: nn.Module, *_: object) -> None:
        found.update(p.data_ptr() % 64 for p in module._parameters.values() if p is not None)

    for module in model.modules():
        module.register_forward_pre_hook(note)
    return found


def forbid_meta(model: nn.Module) -> None:
    """Makes every module refuse to run with its own weights or buffers on the meta device.

    The rows of an embedding come when its forward has the ids, those of experts with the routes.
    """

    def check(module: nn.Module, *_: object) -> None:
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            assert tensor is None or not tensor.is_meta, f"{type(module).__name__}.{name}"

    for module in model.modules():
        if not list(module.children()) and not isinstance(module, nn.Embedding):
            module.register_forward_pre_hook(check)


# parity with stock


@pytest.mark.parametrize("memory", ["min", "some", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_and_tokens_are_those_of_stock(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    exact: None,
    architecture: str,
    dtype: torch.dtype,
    memory: str,
) -> None:
    folder = checkpoint(architecture, dtype)
    reference = stock(folder, attn_implementation="eager")
    budget: int | str = memory
    if memory == "some":
        least = streamed(folder).streaming_plan
        budget = least.device_bytes[CPU] + least.slot_sizes[CPU][0] * 3 // 2
    model = streamed(folder, host_memory=budget, attn_implementation="eager")
    on_disk = [
        name for name in model.streaming_plan.streamed("disk") if name.startswith("model.layers.")
    ]
    moved = sum(layer_bytes(reference, name) for name in on_disk)
    layers = [layer_bytes(reference, name) for name in LAYERS]
    if memory == "some":  # room for one and a half more, in blocks or in their parts
        assert min(layers) / 2 <= moved <= sum(layers) - min(layers)
    else:
        assert moved == {"min": sum(layers), "auto": 0}[memory]
    assert model.dtype == dtype
    if memory == "auto":  # views of the mapped file, wherever its header lets them begin
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    forbid_meta(model)
    check_residency(model)
    for _ in range(2):
        assert torch.equal(model(prompt).logits, reference(prompt).logits)
        check_residency(model)
    expected = reference.generate(prompt, **GREEDY)
    assert torch.equal(model.generate(prompt, **GREEDY), expected)
    check_residency(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_fits_is_mapped_and_as_good_as_stock(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    architecture: str,
) -> None:
    folder = checkpoint(architecture)
    model = streamed(folder, host_memory="auto", attn_implementation="eager")
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    torch.testing.assert_close(model(prompt).logits, reference(prompt).logits)
    assert not model.streaming_plan.away("host", "disk")
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert model.streaming_stats()["bytes_from_disk"] == 0
    assert model.streaming_stats()["forwards"] == 1


@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
def test_another_dtype_than_the_checkpoints(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    asked: str,
) -> None:
    folder = checkpoint("llama", torch.bfloat16)
    model, reference = streamed(folder, dtype=asked), stock(folder, dtype=asked)
    assert str(model.dtype) == f"torch.{asked}"
    assert torch.equal(model(prompt).logits, reference(prompt).logits)


def test_weights_of_odd_sizes_lie_where_every_kernel_may_be_chosen(
    build: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
    exact: None,
) -> None:
    build("llama", hidden_size=40, intermediate_size=37).save_pretrained(tmp_path)
    least = streamed(tmp_path).streaming_plan
    model = streamed(
        tmp_path, host_memory=least.device_bytes[CPU] + least.slot_sizes[CPU][0] * 3 // 2
    )
    assert model.streaming_plan.away("disk")
    assert any(".layers." in name for name in model.streaming_plan.resident())
    addresses = watch_addresses(model)
    model(prompt)
    assert addresses == {0}


def test_a_left_padded_batch(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    mask = torch.ones_like(prompt)
    mask[0, :4] = 0
    model, reference = streamed(checkpoint()), stock(checkpoint())
    options = {"attention_mask": mask, **GREEDY}
    assert torch.equal(model.generate(prompt, **options), reference.generate(prompt, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "top_k": 20, "temperature": 0.7, "max_new_tokens": 8},
        {"num_beams": 3, "max_new_tokens": 6, "do_sample": False},
        {"prompt_lookup_num_tokens": 3, **GREEDY},
        {"use_cache": False, **GREEDY},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_way_of_generating_is_stocks(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    options: dict[str, Any],
) -> None:
    outputs = []
    for model in (streamed(checkpoint()), stock(checkpoint())):
        torch.manual_seed(5)
        outputs.append(model.generate(prompt[:1], **options))
    assert torch.equal(*outputs)
    assert outputs[0].shape[1] > prompt.shape[1]


def test_assisted_decoding(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    model, helper = streamed(checkpoint()), stock(checkpoint("llama-tied"))
    output = model.generate(prompt[:1], assistant_model=helper, **GREEDY)
    assert torch.equal(output, stock(checkpoint()).generate(prompt[:1], **GREEDY))


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_embeddings_may_come_from_outside(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    architecture: str,
) -> None:
    model, reference = streamed(checkpoint(architecture)), stock(checkpoint(architecture))
    embedded = reference.get_input_embeddings()(prompt)
    assert torch.equal(model.get_input_embeddings()(prompt), embedded)
    for _ in range(2):
        expected = reference(inputs_embeds=embedded).logits
        assert torch.equal(model(inputs_embeds=embedded).logits, expected)
        assert torch.equal(model(prompt).logits, expected)


@pytest.mark.parametrize(
    "token",
    [
        160,
        -1,
    ],
)
def test_a_token_beyond_the_vocabulary_is_an_error_as_in_stock(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    token: int,
) -> None:
    for model in (stock(checkpoint()), streamed(checkpoint())):
        with pytest.raises(IndexError):
            model(torch.tensor([[3, token]]))


def test_inference_mode_and_gradients_leave_no_trace(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    model, expected = streamed(checkpoint()), stock(checkpoint())(prompt).logits
    for mode in (torch.inference_mode(), torch.enable_grad(), torch.no_grad()):
        with mode:
            logits = model(prompt).logits
        assert torch.equal(logits, expected)
        assert not logits.requires_grad


def test_two_threads_generate_at_once(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    model = streamed(checkpoint())
    expected = [stock(checkpoint()).generate(row[None], **GREEDY) for row in prompt]
    outputs: dict[int, torch.Tensor] = {}
    together = threading.Barrier(2)

    def generate(i: int) -> None:
        torch.set_num_threads(1)
        together.wait(PATIENCE)
        outputs[i] = model.generate(prompt[i : i + 1], **GREEDY)

    threads = [threading.Thread(target=generate, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [torch.equal(outputs[i], expected[i]) for i in range(2)] == [True, True]


def test_without_prefetching_the_answer_is_the_same(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    model = streamed(checkpoint(), prefetching=False)
    assert model.streaming_stats()["bytes_from_disk"] == 0
    expected = streamed(checkpoint()).generate(prompt, **GREEDY)
    assert torch.equal(model.generate(prompt, **GREEDY), expected)


# what the result is


@pytest.mark.parametrize(
    ("architecture", "stock_name", "family"),
    [
        ("llama", "LlamaForCausalLM", "RabbitLLMLlama2"),
        ("mixtral", "MixtralForCausalLM", "RabbitLLMMixtral"),
        ("qwen3_moe", "Qwen3MoeForCausalLM", "RabbitLLMQWen2"),
        ("gemma2", "Gemma2ForCausalLM", "RabbitLLMLlama2"),
        ("phi", "PhiForCausalLM", "RabbitLLMLlama2"),
    ],
)
def test_the_result_is_of_the_stock_class_and_of_its_family(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    architecture: str,
    stock_name: str,
    family: str,
) -> None:
    model = streamed(checkpoint(architecture))
    assert isinstance(model, getattr(transformers, stock_name))
    assert isinstance(model, getattr(rabbitllm, family))
    assert isinstance(model, StreamedModel)
    assert type(model).__name__ == stock_name
    assert type(model) is type(streamed(checkpoint(architecture)))
    assert model.device == torch.device("cpu")
    assert not model.training
    assert model.checkpoint_folder == checkpoint(architecture)
    assert model.name_or_path == str(checkpoint(architecture))


def test_of_a_composite_checkpoint_the_text_part_streams(
    composite: Path,
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    ours, theirs = streamed(composite), stock(composite)
    assert isinstance(ours, transformers.Llama4ForCausalLM)
    assert ours.config.model_type == theirs.config.model_type == "llama4_text"
    assert torch.equal(ours(prompt).logits, theirs(prompt).logits)
    assert ours.streaming_plan.streamed("disk") == LAYERS


def test_the_generation_config_is_the_checkpoints(
    copied: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    folder = copied()
    GenerationConfig(max_new_tokens=3, eos_token_id=None, pad_token_id=0).save_pretrained(folder)
    assert streamed(folder).generate(prompt).shape == (2, prompt.shape[1] + 3)
    (folder / "generation_config.json").unlink()
    assert streamed(folder).generate(prompt, **GREEDY).shape[1] > prompt.shape[1]


@pytest.fixture
def with_tokenizer(copied: Callable[..., Path]) -> Path:
    folder = copied()
    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "hello", "world"])}
    words |= {f"w{i}": i for i in range(len(words), 160)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def test_the_tokenizer_is_the_checkpoints(
    with_tokenizer: Path, streamed: Callable[..., StreamedModel]
) -> None:
    model = streamed(with_tokenizer)
    assert model.tokenizer("hello world w9").input_ids == [3, 4, 9]
    assert model.tokenizer is model.tokenizer


def test_a_checkpoint_without_tokenizer_says_so_when_asked(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel]
) -> None:
    model = streamed(checkpoint())
    with pytest.raises(CheckpointError, match=f"^{checkpoint()} has no tokenizer that"):
        _ = model.tokenizer


# budgets


def test_the_stated_minimum_works_and_splits_blocks_bit_for_bit(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    exact: None,
) -> None:
    folder = checkpoint()
    with pytest.raises(BudgetError, match=r"needs at least .* \((\d+) bytes\)") as caught:
        streamed(folder, host_memory=1000)
    found = re.search(r"\((\d+) bytes\)", str(caught.value))
    assert found
    least = int(found[1])
    with pytest.raises(BudgetError):
        streamed(folder, host_memory=least - 1)
    model = streamed(folder, host_memory=least)
    plan = model.streaming_plan
    assert plan.device_bytes[CPU] <= least < streamed(folder).streaming_plan.device_bytes[CPU]
    assert "model.layers.2.mlp.up_proj" in plan.away("disk")
    assert torch.equal(model(prompt).logits, stock(folder)(prompt).logits)
    check_residency(model)


def test_a_budget_between_splits_blocks_and_holds(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    exact: None,
) -> None:
    whole = streamed(checkpoint()).streaming_plan.device_bytes[CPU]
    model = streamed(checkpoint(), host_memory=whole - 1)
    assert model.streaming_plan.device_bytes[CPU] < whole
    assert any(
        name.startswith("model.layers.1.mlp") for name in model.streaming_plan.streamed("disk")
    )
    assert torch.equal(model(prompt).logits, stock(checkpoint())(prompt).logits)
    again = streamed(checkpoint(), host_memory=whole)
    assert again.streaming_plan.device_bytes[CPU] <= whole
    reference = stock(checkpoint())
    moved = sum(layer_bytes(reference, name) for name in again.streaming_plan.streamed("disk"))
    assert 0 < moved < sum(layer_bytes(reference, name) for name in LAYERS)  # slots are smaller


def test_a_budget_may_be_written_with_its_unit(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel]
) -> None:
    plan = streamed(checkpoint(), host_memory="1GiB").streaming_plan
    assert not plan.away("host", "disk")
    assert plan.device_bytes[CPU] < 2**30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host_memory": "lots"}, "'lots' is no size"),
        ({"host_memory": -1}, "-1 is no size"),
        ({"dtype": "int8"}, "dtype='int8' is no floating point dtype"),
        ({"dtype": "float17"}, "dtype='float17' is no floating point dtype"),
        ({"device": "tpu"}, "device='tpu' is not understood"),
        ({"device": "cpu:x"}, "device='cpu:x' is not understood"),
        ({"device": "meta"}, "device='meta' is not supported"),
        ({"device": f"cuda:{torch.cuda.device_count()}"}, "is not there"),
    ],
)
def test_a_bad_argument_is_named(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        streamed(checkpoint(), **options)


@pytest.mark.parametrize("memory", ["lots", 1000])
def test_a_bad_budget_is_found_before_anything_is_written(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    tmp_path: Path,
    memory: int | str,
) -> None:
    with pytest.raises(ValueError, match=r"is no size|at least"):
        streamed(checkpoint("mixtral"), host_memory=memory, layer_shards_saving_path=tmp_path)
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_no_folder_is_a_checkpoint_error(streamed: Callable[..., StreamedModel]) -> None:
    with pytest.raises(CheckpointError, match="No such folder"):
        streamed(Path("/no/such/folder"))


# figures


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "mixtral"])
def test_each_forward_reads_the_streamed_stages_once(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    architecture: str,
) -> None:
    model, reference = streamed(checkpoint(architecture)), stock(checkpoint(architecture))
    experts = [p.nbytes // len(p) for n, p in reference.named_parameters() if ".experts." in n]
    on_disk = model.streaming_plan.streamed("disk")
    assert set(LAYERS) <= set(on_disk)
    expected = sum(layer_bytes(reference, name) for name in on_disk)
    read = []
    for forwards in range(1, 6):
        model(prompt)
        stats = model.streaming_stats()
        rows = stats["rows_brought"] + stats["rows_guessed"]
        read.append(stats["bytes_from_disk"] - rows * sum(experts[:2]))
        assert stats["forwards"] == forwards
        assert stats["bytes_to_device"] == 0
        assert 0 <= stats["wait_seconds"] <= stats["seconds"]
        assert stats["stages"] == {}
    assert {after - before for before, after in pairwise(read[1:])} == {expected}


def test_profiling_times_every_streamed_stage(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel], prompt: torch.Tensor
) -> None:
    model = streamed(checkpoint(), profiling_mode=True)
    model(prompt)
    stages = model.streaming_stats()["stages"]
    assert list(stages) == model.streaming_plan.streamed("disk")
    assert all(times["compute"] > 0 <= times["wait"] for times in stages.values())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("asked", "memory", "terminal", "shown"),
    [
        (True, "min", True, True),
        (None, "min", True, True),
        (False, "min", True, False),
        (None, "auto", True, False),
        (True, "min", False, False),
    ],
)
def test_a_progress_bar_shows_on_a_terminal(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    asked: bool | None,
    memory: str,
    terminal: bool,
    shown: bool,
) -> None:
    model = streamed(checkpoint(), host_memory=memory, show_layer_progress=asked)
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    model(prompt)
    assert ("Layers" in screen.getvalue()) == shown
    assert shown or screen.getvalue() == ""


# errors on the way


def test_a_shard_that_goes_bad_is_an_error_in_the_forward(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
) -> None:
    stock(checkpoint()).save_pretrained(tmp_path, max_shard_size="150KB")
    model = streamed(tmp_path)
    model(prompt)
    name = "model.layers.3.mlp.down_proj.weight"
    file = next(e.file for key, e in read_index(tmp_path).items() if key == name)
    os.truncate(file, 5000)
    with pytest.raises(CheckpointError, match=rf"{file.name} ends at byte"):
        model(prompt)
    check_residency(model)


def cut_off(file: Path) -> None:
    os.truncate(file, 5000)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def written_over(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(-1000, os.SEEK_END)
        stream.write(bytes(1000))


KINDS: list[dict[str, Any]] = [{}, {"host_memory": "auto"}, {"prefetching": False}]


@pytest.mark.parametrize("change", [cut_off, emptied, written_over])
@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_a_file_that_is_changed_under_a_model_is_named(
    copied: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    architecture: str,
    options: dict[str, Any],
    change: Callable[[Path], None],
) -> None:
    folder = copied(architecture)
    model = streamed(folder, **options)
    model(prompt)
    change(folder / "model.safetensors")

    def twice() -> None:  # what has come ahead is still right
        for _ in range(2):
            model(prompt)

    with pytest.raises(CheckpointError, match=r"model\.safetensors (was changed|ends at byte)"):
        twice()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_file_that_another_takes_the_name_of_goes_on(
    copied: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    options: dict[str, Any],
) -> None:
    folder = copied()
    model, expected = streamed(folder, **options), streamed(folder)(prompt).logits
    (folder / "new").write_bytes(bytes(100))
    (folder / "new").replace(folder / "model.safetensors")
    for _ in range(3):
        assert torch.equal(model(prompt).logits, expected)
    (folder / "model.safetensors").unlink()
    assert torch.equal(model(prompt).logits, expected)


def test_weights_used_in_place_are_those_that_were_there_at_the_end_too(
    copied: Callable[..., Path], streamed: Callable[..., StreamedModel], prompt: torch.Tensor
) -> None:
    folder = copied()
    model: Any = streamed(folder, host_memory="auto")
    model.model.layers[1].register_forward_hook(
        lambda *_: written_over(folder / "model.safetensors")
    )
    with pytest.raises(CheckpointError, match="was changed while it was in use"):
        model(prompt)


def test_a_file_that_changes_while_a_store_is_made_is_named(
    copied: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = copied("mixtral")
    monkeypatch.setattr(
        LayerStore, "_check_space", lambda *_: cut_off(folder / "model.safetensors")
    )
    with pytest.raises(CheckpointError, match=r"model\.safetensors ends at byte"):
        streamed(folder, dtype="bfloat16", layer_shards_saving_path=tmp_path / "stores")


def test_a_model_without_blocks_is_resident_and_equals_stock(
    build: Callable[..., PreTrainedModel],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
) -> None:
    build("openai-gpt", n_layer=4, n_head=4, n_embd=64).save_pretrained(tmp_path)
    model = streamed(tmp_path)
    assert list(model.streaming_plan.places) == [""]
    with torch.no_grad():
        assert torch.equal(model(prompt).logits, stock(tmp_path)(prompt).logits)
