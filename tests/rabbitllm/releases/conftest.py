"""A checkpoint whose code depends on what a release of transformers hands to its layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CODE = '''
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


class SharpConfig(LlamaConfig):
    model_type = "sharp"


class SharpLayer(LlamaDecoderLayer):
    """Scales hidden states by their place, which releases before 5.4 tell a layer."""

    def forward(self, hidden_states, *args, **kwargs):
        place = kwargs.get("cache_position")
        if place is not None:
            scale = 1 + torch.log1p(place.to(hidden_states.dtype)) / 4
            hidden_states = hidden_states * scale[None, :, None]
        return super().forward(hidden_states, *args, **kwargs)


class SharpForCausalLM(LlamaForCausalLM):
    config_class = SharpConfig

    def __init__(self, config):
        super().__init__(config)
        layers = [SharpLayer(config, n) for n in range(config.num_hidden_layers)]
        self.model.layers = torch.nn.ModuleList(layers)
        self.post_init()
'''
CONFIG = {
    "architectures": ["SharpForCausalLM"],
    "auto_map": {
        "AutoConfig": "modeling_sharp.SharpConfig",
        "AutoModelForCausalLM": "modeling_sharp.SharpForCausalLM",
    },
    "model_type": "sharp",
    "vocab_size": 256,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture
def sharp(tmp_path: Path) -> Path:
    """The folder of the checkpoint, with weights by seed and a tokenizer of bytes."""
    folder = tmp_path / "sharp"
    folder.mkdir()
    (folder / "modeling_sharp.py").write_text(CODE)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights(), folder / "model.safetensors", {"format": "pt"})
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: n for n, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "self_attn.q_proj": (16, 16),
        "self_attn.k_proj": (8, 16),
        "self_attn.v_proj": (8, 16),
        "self_attn.o_proj": (16, 16),
        "mlp.gate_proj": (24, 16),
        "mlp.up_proj": (24, 16),
        "mlp.down_proj": (16, 24),
    }
    inside = {f"model.layers.0.{name}.weight": shape for name, shape in shapes.items()}
    matrices = {"model.embed_tokens.weight": (256, 16), "lm_head.weight": (256, 16), **inside}
    made = {name: torch.randn(s, generator=generator) / 4 for name, s in matrices.items()}
    norms = ("model.norm", "model.layers.0.input_layernorm")
    for name in (*norms, "model.layers.0.post_attention_layernorm"):
        made[f"{name}.weight"] = torch.ones(16)
    return made
