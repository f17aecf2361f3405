"""Code as it comes with a checkpoint: a mixture whose experts are modules in a list.

It knows nothing of transformers' own layers and experts, as such code of before 5.0.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class ListedConfig(PretrainedConfig):
    """Its config.

    Attributes:
        calls: "hit" calls those that tokens are sent to, "all" the others, too, with no token;
            "parts" calls the modules in those that are hit, and "weights" none at all.
        mapped: the experts are in a ModuleDict that has a forward of its own.
        past: the experts are called past the forward of the module that holds them.
        reentrant: of the checkpoints around layers; None has none.
    """

    model_type = "listed"

    def __init__(
        self,
        vocab_size: int = 160,
        hidden_size: int = 32,
        moe_intermediate_size: int = 48,
        num_hidden_layers: int = 3,
        n_routed_experts: int = 8,
        num_experts_per_tok: int = 2,
        calls: str = "hit",
        mapped: bool = False,
        bias: bool = False,
        past: bool = False,
        reentrant: bool | None = None,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.moe_intermediate_size = moe_intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.n_routed_experts = n_routed_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.calls = calls
        self.mapped = mapped
        self.bias = bias
        self.past = past
        self.reentrant = reentrant
        super().__init__(**others)


class ListedMLP(nn.Module):
    """One expert."""

    def __init__(self, config: ListedConfig) -> None:
        super().__init__()
        inner = config.moe_intermediate_size
        self.gate_proj = nn.Linear(config.hidden_size, inner, bias=config.bias)
        self.up_proj = nn.Linear(config.hidden_size, inner, bias=config.bias)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] -> the same."""
        y = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        assert isinstance(y, torch.Tensor)
        return y


def run(expert: Any, x: torch.Tensor, calls: str) -> torch.Tensor:
    """What one expert gives: [tokens, hidden]."""
    if calls == "parts":
        y = expert.down_proj(nn.functional.silu(expert.gate_proj(x)) * expert.up_proj(x))
    elif calls == "weights":
        gate = nn.functional.linear(x, expert.gate_proj.weight)
        inner = nn.functional.silu(gate) * nn.functional.linear(x, expert.up_proj.weight)
        y = nn.functional.linear(inner, expert.down_proj.weight)
    else:
        y = expert(x)
    assert isinstance(y, torch.Tensor)
    return y


def mix(
    experts: list[nn.Module], x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, calls: str
) -> torch.Tensor:
    """The sum of what a token's experts give: [tokens, hidden]."""
    y = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        tokens, places = torch.where(index == number)
        if len(tokens) or calls == "all":
            y.index_add_(0, tokens, run(expert, x[tokens], calls) * weight[tokens, places, None])
    return y


class ListedExperts(nn.ModuleDict):
    """Experts by name, and what goes around them."""

    def __init__(self, config: ListedConfig) -> None:
        super().__init__({f"expert_{n}": ListedMLP(config) for n in range(config.n_routed_experts)})
        self.token_dropout = nn.Dropout(0.1)
        self.calls = config.calls

    def forward(self, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] -> the same."""
        experts = [module for name, module in self.items() if name.startswith("expert")]
        y = self.token_dropout(mix(experts, x, index, weight, self.calls))
        assert isinstance(y, torch.Tensor)
        return y


class ListedMoE(nn.Module):
    """Router, experts, and one that all tokens go to."""

    def __init__(self, config: ListedConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(config.hidden_size, config.n_routed_experts, bias=False)
        self.experts: Any = (
            ListedExperts(config)
            if config.mapped
            else nn.ModuleList(ListedMLP(config) for _ in range(config.n_routed_experts))
        )
        self.shared_experts = ListedMLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, hidden] -> the same."""
        flat = x.view(-1, x.shape[-1])
        scores = self.gate(flat).softmax(-1)
        weight, index = scores.topk(self.config.num_experts_per_tok, dim=-1)
        if self.config.mapped:
            y = self.experts(flat, index, weight)
        else:
            y = mix(list(self.experts), flat, index, weight, self.config.calls)
        y = y.view_as(x) + self.shared_experts(x)
        assert isinstance(y, torch.Tensor)
        return y


class ListedDecoderLayer(nn.Module):
    """A block."""

    def __init__(self, config: ListedConfig) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.mlp = ListedMoE(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, hidden] -> the same."""
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = x + (self.mlp.forward if self.mlp.config.past else self.mlp)(x)
        assert isinstance(y, torch.Tensor)
        return y


class ListedForCausalLM(PreTrainedModel, GenerationMixin):
    """The model."""

    config_class = ListedConfig
    base_model_prefix = "none"
    _no_split_modules: ClassVar[list[str]] = ["ListedDecoderLayer"]

    def __init__(self, config: ListedConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = (ListedDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.layers = nn.ModuleList(layers)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """That."""
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        """That."""
        return self.lm_head

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
        """Ids [batch, tokens] -> logits."""
        x = self.embed(input_ids)
        for layer in self.layers:
            if self.config.reentrant is not None and torch.is_grad_enabled():
                x = checkpoint(layer, x, use_reentrant=self.config.reentrant)
            else:
                x = layer(x)
        return CausalLMOutput(logits=self.lm_head(x))
