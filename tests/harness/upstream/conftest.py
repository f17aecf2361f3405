from __future__ import annotations

import pytest

COMMON = """
import tempfile
import types
import unittest

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel


class LlamaModelTest(unittest.TestCase):
    def setUp(self):
        self.all_model_classes = (LlamaModel, LlamaForCausalLM)
        self.model_tester = types.SimpleNamespace(
            num_hidden_layers=2, layer_types=["full_attention", "full_attention"]
        )

    @property
    def all_generative_model_classes(self):
        return tuple(kind for kind in self.all_model_classes if kind.can_generate())

    def layers(self):
        kinds = self.model_tester.layer_types
        assert len(kinds) == self.model_tester.num_hidden_layers
        return len(kinds)

    def model(self):
        config = LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=self.layers(),
            num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
        )
        return self.all_model_classes[-1](config).eval()


class OtherTest(unittest.TestCase):
    def test_that_is_of_no_generating_model(self):
        raise AssertionError("must not run")


"""
"""What stands in for transformers' test files: classes of tests with the attributes of its own."""


@pytest.fixture
def source(tmp_path):
    """Give a function that writes transformers' source with the given tests of Llama."""

    def write(*tests):
        folder = tmp_path / "transformers"
        place = folder / "tests" / "models" / "llama"
        place.mkdir(parents=True, exist_ok=True)
        methods = "".join(f"\n    {line}" for test in tests for line in test.strip().splitlines())
        head, _, tail = COMMON.partition("\n\nclass OtherTest")
        text = f"{head}\n{methods}\n\n\nclass OtherTest{tail}"
        (place / "test_modeling_llama.py").write_text(text)
        package = folder / "src" / "transformers"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text('__version__ = "5.0.0"\n')
        return folder

    return write
