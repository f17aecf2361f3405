from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from harness.matrix import Gguf, load_matrix
from harness.measuring import checkpoints
from harness.measuring.checkpoints import (
    checkpoint,
    gguf_file,
    load_reference,
    tiny_model,
    write_tokenizer,
)


@pytest.fixture
def here(cell):
    return lambda name, backend="eager": cell(name, backend, transformers.__version__)


def test_backends_share_a_checkpoint_that_is_made_once(here, tmp_path, monkeypatch):
    first = checkpoint(here("llama", "sdpa"), tmp_path)
    monkeypatch.setattr(checkpoints, "tiny_model", None)
    assert checkpoint(here("llama", "eager"), tmp_path) == first
    assert [entry.name for entry in tmp_path.iterdir()] == [first.name]
    assert {"config.json", "model.safetensors"} <= {entry.name for entry in first.iterdir()}


def test_a_recipe_that_changes_makes_another(here, tmp_path):
    cell = here("llama")
    row = replace(cell.architecture, config=cell.architecture.config | {"vocab_size": 128})
    other = replace(cell, architecture=row)
    assert checkpoint(cell, tmp_path) != checkpoint(other, tmp_path)


def test_one_that_fails_leaves_nothing(here, tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", broken)
    with pytest.raises(OSError, match="No space"):
        checkpoint(here("llama"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_are_the_same_every_time_and_none_is_neutral(here):
    first, second = tiny_model(here("phi")), tiny_model(here("phi"))
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name
        if one.dim() == 1:
            assert one.unique().numel() > 1, name
    norm = dict(first.named_parameters())["model.layers.0.input_layernorm.weight"]
    assert abs(norm.mean() - 1) < 0.2


def test_the_correction_bias_of_deepseek_is_no_zero(here):
    biases = [b for n, b in tiny_model(here("deepseek_v3")).named_buffers() if "correction" in n]
    assert biases
    assert all(bias.abs().min() > 0 for bias in biases)


# Not every release can run deepseek_v2-grouped, see matrix/expected_failures.toml.
TINY = [row.id for row in load_matrix().architectures if row.config and "grouped" not in row.id]


@pytest.mark.parametrize("name", TINY)
def test_logits_are_not_degenerate(here, name):
    model = tiny_model(here(name)).eval()
    ids = torch.randint(3, 256, (1, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.2
    assert logits.argmax(-1).unique().numel() > 8


def test_the_reference_lies_in_aligned_memory_and_stays_tied(here, tmp_path):
    cell = here("llama-tied")
    model = load_reference(cell, checkpoint(cell, tmp_path), torch.device("cpu"))
    assert all(parameter.data_ptr() % 64 == 0 for parameter in model.parameters())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not model.training


def test_a_type_that_transformers_does_not_know_is_in_the_file_alone(here, tmp_path):
    cell = here("kimi_k2")
    folder = checkpoint(cell, tmp_path)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "kimi_k2"
    model = load_reference(cell, folder, torch.device("cpu"))
    assert model.config.model_type == "deepseek_v3"
    made = tiny_model(cell).state_dict()
    assert all(torch.equal(made[name], value) for name, value in model.state_dict().items())


def test_of_a_composite_checkpoint_the_text_part_is_the_reference(here, tmp_path):
    cell = here("qwen3_5")
    folder = checkpoint(cell, tmp_path)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3_5"
    text = load_reference(cell, folder, torch.device("cpu"))
    whole = tiny_model(cell).eval()
    assert type(whole).__name__ == "Qwen3_5ForConditionalGeneration"
    assert type(text).__name__ == "Qwen3_5ForCausalLM"
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        assert (text(ids).logits - whole(ids).logits).abs().max() < 1e-4


def test_a_tokenizer_from_gguf_is_the_one_that_transformers_reads(tmp_path):
    (gguf,) = (row.gguf for row in load_matrix().architectures if row.gguf)
    source = gguf_file(gguf)
    write_tokenizer(source, tmp_path)
    ours = AutoTokenizer.from_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    chat = [{"role": "user", "content": "It's 1234  naïve\n\nquestions, <|im_end|> 你好"}]
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
    assert ours.eos_token_id == theirs.eos_token_id


def test_a_file_that_the_distribution_lacks_is_named():
    with pytest.raises(FileNotFoundError, match=r"package packaging holds no x.gguf"):
        gguf_file(Gguf("packaging", "x.gguf"))
