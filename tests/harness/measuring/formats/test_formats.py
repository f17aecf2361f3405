from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.matrix import load_matrix
from harness.measuring import formats
from harness.measuring.formats import FORMS
from harness.running.cell import run

ERROR = {
    "fp8": 0.04,
    "mxfp4": 0.2,
    "nf4": 0.12,
    "awq": 0.13,
    "gptq": 0.13,
    "compressed-tensors": 0.15,
}
"""Largest error of what is decoded, as a share of the weight's norm."""


def weight(name):
    shape = (2, 128, 64) if name == "mxfp4" else (256, 384)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FORMS)
def test_what_is_encoded_is_nearly_the_weight(name):
    form, plain = FORMS[name], weight(name)
    stored = form.encode(plain)
    assert set(stored) == set(form.suffixes)
    decoded = form.decode(stored)
    assert decoded.shape == plain.shape
    assert (decoded.float() - plain).norm() < ERROR[name] * plain.norm()


@pytest.mark.parametrize("name", FORMS)
def test_folders_are_encoded_and_decoded(tmp_path, name):
    key = "model.layers.0.mlp." + ("experts.down_proj" if name == "mxfp4" else "up_proj.weight")
    quantised, plain = tmp_path / "quantised", tmp_path / "plain"
    quantised.mkdir()
    plain.mkdir()
    save_file({key: weight(name), "norm.weight": torch.ones(3)}, quantised / "model.safetensors")
    (quantised / "config.json").write_text('{"model_type": "llama"}')
    formats.encode(name, quantised)
    config = json.loads((quantised / "config.json").read_text())
    assert config["quantization_config"] == FORMS[name].settings
    assert key not in load_file(quantised / "model.safetensors") or name in ("fp8", "nf4")
    formats.decode(name, quantised, plain)
    found = load_file(plain / "model.safetensors")
    assert found.keys() == {key, "norm.weight"}
    assert found[key].shape == weight(name).shape
    assert json.loads((plain / "config.json").read_text()) == {"model_type": "llama"}


def test_nothing_to_quantise_is_told(tmp_path):
    save_file({"norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds nothing that awq quantises"):
        formats.encode("awq", tmp_path)


def test_rows_name_formats_that_there_are():
    rows = [row for row in load_matrix().architectures if row.format]
    assert {row.format for row in rows} == FORMS.keys()
    for row in rows:
        assert row.asked
        assert "published_format" in row.checks


def test_a_backend_that_a_row_is_not_asked_about_does_not_run(cell, tmp_path):
    assert cell("llama-awq", "sdpa").unasked == ""
    found = run(replace(cell("llama-awq", "eager")), tmp_path)
    assert (found.status, found.message) == ("not-asked", "llama-awq is measured with sdpa only")
