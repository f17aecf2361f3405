from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.checkpoints import SHAPES, write_checkpoint
from benchmarks.llama_cpp.write import QWEN2, layers_of, main, write_gguf
from rabbitllm.checkpoint.index import SAFETENSORS

gguf = pytest.importorskip("gguf")


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def checkpoint(tmp_path, request):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = type(SHAPES["qwen2-7b"])(tie_word_embeddings=request.param, **sizes, **heads)
    return write_checkpoint(config, tmp_path / "made", torch.bfloat16, "cpu")


def test_transformers_reads_the_same_model_from_it(checkpoint, tmp_path):
    file = write_gguf(checkpoint, tmp_path / "made.gguf")
    assert not list(tmp_path.glob("*.partial"))
    weights = {}
    for shard in set(
        json.loads((checkpoint / SAFETENSORS.index).read_text())["weight_map"].values()
    ):
        weights |= load_file(checkpoint / shard)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 3)
    assert len(read) == len(weights)
    for name, weight in weights.items():
        module, _, suffix = name.rpartition(".")
        held = read[f"{names.get_name(module)}.{suffix}"]
        assert list(held.shape)[::-1] == list(weight.shape)
        dtype = torch.float32 if weight.dim() == 1 else torch.bfloat16
        found = torch.frombuffer(bytearray(held.data.tobytes()), dtype=dtype).view(weight.shape)
        assert torch.equal(found.to(weight.dtype), weight), name


def test_layers_are_as_large_as_their_weights(checkpoint, tmp_path):
    file = write_gguf(checkpoint, tmp_path / "made.gguf")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    layer = model.model.layers[0]
    size = sum(each.numel() * (4 if each.dim() == 1 else 2) for each in layer.parameters())
    assert layers_of(file) == [size] * 3


def test_a_complete_file_is_kept(tmp_path):
    file = tmp_path / "made.gguf"
    file.write_bytes(b"as it is")
    assert write_gguf(tmp_path / "absent", file).read_bytes() == b"as it is"


def test_command_writes_beside_the_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SHAPES, "qwen2-7b", type(SHAPES["qwen2-7b"])(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    ))  # fmt: skip
    assert "qwen2-7b" in QWEN2
    assert main(["--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "qwen2-7b.gguf")
    assert len(layers_of(tmp_path / "qwen2-7b.gguf")) == 1
