from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rabbitllm.streaming import stages as stages_module
from rabbitllm.streaming.stages import REST, find_stages
from rabbitllm.streaming.structure import find_structure
from rabbitllm.streaming.weights import ALIGNMENT, Stage

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
LAYERS = [f"model.layers.{i}" for i in range(4)]
TIED = {"lm_head.weight": "model.embed_tokens.weight"}


def find(
    model: PreTrainedModel, tied: dict[str, str] | None = None, limit: int | None = None
) -> tuple[Stage | None, dict[str, Stage]]:
    """The pinned stage, if there is one, and the others."""
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    structure = find_structure(model, tied or {}, dtypes)
    stages = {stage.name: stage for stage in find_stages(structure, limit)}
    assert [name for name, stage in stages.items() if stage.pinned] == [REST] * (REST in stages)
    return stages.pop(REST, None), stages


def names(stage: Stage | None) -> list[str]:
    assert stage is not None
    return [weight.name for weight in stage.weights]


@pytest.fixture
def llama(build: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return build("llama")


@pytest.mark.parametrize(
    "architecture", ["llama", "mixtral", "qwen3_moe", "deepseek_v3", "gemma2", "phi"]
)
def test_every_block_is_a_stage_and_every_weight_is_in_one(
    checkpoint: Callable[..., Any], architecture: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint(architecture))
    base, stages = find(model, model.all_tied_weights_keys)
    assert [name for name in stages if name in LAYERS] == LAYERS
    for name in LAYERS:
        assert stages[name].modules == (model.get_submodule(name),)
        assert all(weight.startswith(f"{name}.") for weight in names(stages[name]))
    owned = [
        f"{path}.{attribute}"
        for stage in [base, *stages.values()]
        if stage is not None
        for weight in stage.weights
        for module, attribute in weight.owners
        for path, candidate in model.named_modules()
        if candidate is module
    ]
    assert sorted(owned) == sorted(model.state_dict())


def test_a_large_embedding_and_head_are_stages_in_the_order_of_the_forward(
    llama: PreTrainedModel,
) -> None:
    base, stages = find(llama)
    assert list(stages) == [EMBEDDING, *LAYERS, HEAD]
    assert names(base) == ["model.norm.weight"]
    asked = {weight.name: weight.by for stage in stages.values() for weight in stage.weights}
    assert asked.pop(f"{EMBEDDING}.weight") == 0
    assert set(asked.values()) == {None}


def test_a_small_embedding_and_head_are_resident(build: Callable[..., PreTrainedModel]) -> None:
    base, stages = find(build("llama", vocab_size=24))
    assert list(stages) == LAYERS
    assert names(base) == ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


def test_a_tied_pair_is_one_stage_of_two_modules(build: Callable[..., PreTrainedModel]) -> None:
    model = build("llama", tie_word_embeddings=True)
    for tied in ({}, TIED):  # tied by identity, as in a built model, or by name, as in a checkpoint
        _, stages = find(model, tied)
        assert list(stages) == [EMBEDDING, *LAYERS]
        stage = stages[EMBEDDING]
        assert stage.modules == (model.model.embed_tokens, model.lm_head)
        (weight,) = stage.weights
        assert weight.owners == ((model.model.embed_tokens, "weight"), (model.lm_head, "weight"))
        assert stage.nbytes == 160 * 64 * 4


def test_a_pair_tied_by_name_alone_is_one_stage(llama: PreTrainedModel) -> None:
    assert llama.lm_head.weight is not llama.model.embed_tokens.weight
    assert list(find(llama, TIED)[1]) == [EMBEDDING, *LAYERS]


def test_of_an_embedding_nothing_streams_and_of_a_tied_pair_the_heads_weight(
    llama: PreTrainedModel,
) -> None:
    _, stages = find(llama)
    assert stages[EMBEDDING].streamed() is None
    assert stages[HEAD].streamed() is stages[HEAD]
    _, tied = find(llama, TIED)
    left = tied[EMBEDDING].streamed()
    assert left is not None
    assert tied[EMBEDDING].gathered().keys() == {(llama.model.embed_tokens, 0)}
    assert left.gathered() == {}
    assert left.modules == (llama.lm_head,)
    assert left.weights[0].owners == ((llama.lm_head, "weight"),)
    assert left.name == EMBEDDING
    assert left.nbytes == tied[EMBEDDING].nbytes


def test_of_a_tied_pair_the_embedding_is_asked_whichever_comes_first(
    llama: PreTrainedModel,
) -> None:
    llama._modules = dict(reversed(llama._modules.items()))
    _, stages = find(llama, TIED)
    (weight,) = stages[HEAD].weights
    assert (weight.name, weight.by) == ("lm_head.weight", 0)
    left = stages[HEAD].streamed()
    assert left is not None
    assert left.modules == (llama.lm_head,)


def test_a_biased_head_keeps_its_bias_beside_a_tied_weight(
    build: Callable[..., PreTrainedModel],
) -> None:
    model = build("phi", tie_word_embeddings=True)
    _, stages = find(model, TIED)
    assert names(stages[EMBEDDING]) == ["model.embed_tokens.weight", "lm_head.bias"]
    left = stages[EMBEDDING].streamed()
    assert left is not None
    assert [weight.owners for weight in left.weights] == [
        ((model.lm_head, "weight"),),
        ((model.lm_head, "bias"),),
    ]


def test_what_two_blocks_share_is_resident(llama: PreTrainedModel) -> None:
    first, second = llama.model.layers[0].mlp, llama.model.layers[2].mlp
    second.up_proj.weight = first.up_proj.weight
    base, stages = find(llama)
    assert base is not None
    (weight,) = [w for w in base.weights if w.name == "model.layers.0.mlp.up_proj.weight"]
    assert weight.owners == ((first.up_proj, "weight"), (second.up_proj, "weight"))
    assert "model.layers.2.mlp.up_proj.weight" not in names(stages["model.layers.2"])
    assert "model.layers.0.mlp.gate_proj.weight" in names(stages["model.layers.0"])


def test_a_head_tied_to_a_block_is_resident(llama: PreTrainedModel) -> None:
    base, stages = find(llama, {"lm_head.weight": "model.layers.3.mlp.up_proj.weight"})
    assert "model.layers.3.mlp.up_proj.weight" in names(base)
    assert list(stages) == [EMBEDDING, *LAYERS]


def test_of_nested_blocks_the_outermost_is_the_stage(llama: PreTrainedModel) -> None:
    class Inner(GradientCheckpointingLayer):
        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            self.mlp = mlp

    llama.model.layers[1].mlp = Inner(llama.model.layers[1].mlp)
    _, stages = find(llama)
    assert list(stages) == [EMBEDDING, *LAYERS, HEAD]
    assert "model.layers.1.mlp.mlp.up_proj.weight" in names(stages["model.layers.1"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_aligned_and_do_not_overlap(
    build: Callable[..., PreTrainedModel], dtype: torch.dtype
) -> None:
    model = build("phi", dtype, hidden_size=36, vocab_size=99)
    base, stages = find(model)
    for stage in [base, *stages.values()]:
        assert stage is not None
        end = 0
        for weight in stage.weights:
            assert weight.offset % ALIGNMENT == 0
            assert end <= weight.offset < end + ALIGNMENT
            tensor = model.state_dict()[weight.name]
            assert (weight.shape, weight.dtype) == (tensor.shape, dtype)
            assert weight.nbytes == tensor.nbytes
            end = weight.offset + weight.nbytes
        assert stage.nbytes % ALIGNMENT == 0
        assert end <= stage.nbytes < end + ALIGNMENT


def test_a_block_over_the_limit_splits_into_its_children(llama: PreTrainedModel) -> None:
    _, whole = find(llama)
    assert list(find(llama, limit=whole[LAYERS[0]].nbytes)[1]) == list(whole)
    base, parts = find(llama, limit=whole[LAYERS[0]].nbytes - 1)
    assert list(parts)[1:5] == [
        f"{LAYERS[0]}.{part}"
        for part in ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    ]
    assert set(names(base)) == {"model.norm.weight"}
    _, leaves = find(llama, limit=1)
    assert f"{LAYERS[0]}.self_attn.q_proj" in leaves
    assert not any(name in leaves for name in LAYERS)


def test_what_is_small_in_a_split_block_is_resident(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = find(llama)[1][LAYERS[0]].nbytes - 1
    monkeypatch.setattr(stages_module, "SMALL", 1 / 64)
    base, parts = find(llama, limit=limit)
    assert list(parts)[1:3] == [f"{LAYERS[0]}.self_attn", f"{LAYERS[0]}.mlp"]
    assert f"{LAYERS[0]}.input_layernorm.weight" in names(base)


def test_a_parameter_of_a_split_block_itself_is_resident(llama: PreTrainedModel) -> None:
    llama.model.layers[1].scale = nn.Parameter(torch.ones(3))
    base, stages = find(llama, limit=1)
    assert "model.layers.1.scale" in names(base)
    assert "model.layers.1.scale" not in [n for stage in stages.values() for n in names(stage)]


def test_a_split_looks_into_lists_of_modules(build: Callable[..., PreTrainedModel]) -> None:
    model = build("llama")
    block = model.model.layers[0]
    block.experts = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
    _, stages = find(model, limit=64 * 64 * 4 * 2)
    assert {f"{LAYERS[0]}.experts.0", f"{LAYERS[0]}.experts.1"} <= stages.keys()
    assert f"{LAYERS[0]}.experts" not in stages


def test_buffers_come_with_a_whole_block_and_stay_where_it_is_split(
    checkpoint: Callable[..., Any],
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint("llama"))
    model.model.layers[1].mlp.register_buffer("bias", torch.zeros(3))
    bias = f"{LAYERS[1]}.mlp.bias"
    base, stages = find(model)
    (weight,) = [w for w in stages[LAYERS[1]].weights if w.name == bias]
    assert weight.kind == "_buffers"
    assert bias not in names(base)
    for limit in (sum(w.nbytes for w in stages[LAYERS[1]].weights) - 1, 1):
        base, stages = find(model, limit=limit)
        assert bias in names(base)
        assert any(name.startswith(f"{LAYERS[1]}.") for name in stages)


def test_experts_are_a_stage_of_rows_and_their_router_stays(checkpoint: Callable[..., Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint("deepseek_v3"))
    base, stages = find(model)
    experts = stages[f"{LAYERS[3]}.mlp.experts"]
    assert experts.slotless
    assert experts.rows == experts.least_rows == len(model.model.layers[3].mlp.experts.down_proj)
    assert {weight.by for weight in experts.weights} == {1}
    assert experts.row_nbytes * experts.rows >= sum(w.nbytes for w in experts.weights)
    gate = f"{LAYERS[3]}.mlp.gate"
    assert {f"{gate}.weight", f"{gate}.e_score_correction_bias"} <= set(names(base))
    assert not any(".experts." in name for name in names(stages[LAYERS[3]]))
    assert f"{LAYERS[3]}.mlp.shared_experts.up_proj.weight" in names(stages[LAYERS[3]])


class NormedEmbedding(nn.Embedding):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.norm = nn.LayerNorm(sizes[1])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.norm(super().forward(ids))
        return embedded


def test_a_norm_inside_an_embedding_is_resident(build: Callable[..., PreTrainedModel]) -> None:
    model = build("llama", vocab_size=20_000, tie_word_embeddings=False)
    model.set_input_embeddings(NormedEmbedding(20_000, 64))
    base, stages = find(model)
    assert names(stages[EMBEDDING]) == [f"{EMBEDDING}.weight"]
    assert {f"{EMBEDDING}.norm.weight", f"{EMBEDDING}.norm.bias"} <= set(names(base))


class Positions(nn.Embedding):
    def forward(self, shape: torch.Size, device: torch.device) -> torch.Tensor:  # type: ignore[override]
        return super().forward(torch.arange(shape[1], device=device))


def test_an_embedding_that_is_called_in_its_own_way_is_resident(llama: PreTrainedModel) -> None:
    llama.model.positions = Positions(20_000, 64)
    base, _ = find(llama)
    assert "model.positions.weight" in names(base)
    llama.model.positions = nn.Embedding(20_000, 64)
    assert "model.positions" in find(llama)[1]


def test_what_torch_reads_past_a_childs_forward_is_one_piece(llama: PreTrainedModel) -> None:
    """As a tower's pooling head does (SigLIP's), and a block in torch's own way."""
    llama.model.head = nn.MultiheadAttention(256, 4)
    llama.model.tower = nn.TransformerEncoderLayer(256, 4, 256)
    llama.model.layers[0].attention = nn.MultiheadAttention(256, 4)
    base, stages = find(llama, limit=1)
    assert {"model.head.out_proj.weight", "model.tower.linear1.weight"} <= set(names(base))
    piece = stages[f"{LAYERS[0]}.attention"]
    assert f"{piece.name}.out_proj.weight" in names(piece)
    llama.model.called = nn.Linear(256, 256)
    assert "model.called" in find(llama, limit=1)[1]


def test_without_blocks_only_what_is_large_in_the_whole_streams(
    build: Callable[..., PreTrainedModel],
) -> None:
    model = build("openai-gpt", vocab_size=20_000, n_embd=64, n_layer=2, n_head=4)
    base, stages = find(model, model.all_tied_weights_keys)
    assert list(stages) == ["transformer.tokens_embed"]
    assert "transformer.h.0.mlp.c_fc.weight" in names(base)
