"""DeepSeek-V2 and DeepSeek-V3.

https://arxiv.org/abs/2405.04434 and https://arxiv.org/abs/2412.19437, section 2.1 of both;
config.json, keys and modeling_deepseek.py in https://huggingface.co/deepseek-ai/DeepSeek-V2,
DeepSeek-V2-Lite and DeepSeek-V3-0324.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.measuring.references import rope
from harness.measuring.references.attention import attention, positions, visible
from harness.measuring.references.checkpoint import Checkpoint, rms_norm
from harness.measuring.references.decoder import Part, gated, pre_norm
from harness.measuring.references.experts import limited, mixed

Route = Callable[[Checkpoint, str, Tensor], tuple[Tensor, Tensor]]
"""From a checkpoint, the router's key and x [..., H]: numbers of experts and weights, [..., k]."""


def deepseek_v2(model: Checkpoint, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Latent attention, and experts that softmax chooses."""
    return decoder(model, ids, mask, softmax_routes)


def deepseek_v3(model: Checkpoint, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Latent attention, and experts that sigmoid and a bias choose."""
    return decoder(model, ids, mask, sigmoid_routes)


def decoder(model: Checkpoint, ids: Tensor, mask: Tensor | None, route: Route) -> Tensor:
    """Logits [B, S, V]; the first layers are dense, the others have shared and routed experts."""
    model = model.assuming(tie_word_embeddings=False)

    def feed_forward(n: int, x: Tensor) -> Tensor:
        at = f"model.layers.{n}.mlp"
        if n < model.config["first_k_dense_replace"]:
            return gated(model, at, x)
        chosen, weights = route(model, f"{at}.gate", x)
        y = mixed(x, chosen, weights, lambda i, part: gated(model, f"{at}.experts.{i}", part))
        return y + gated(model, f"{at}.shared_experts", x)

    return pre_norm(model, ids, model.rms_norm, latent(model, ids, mask), feed_forward)


def latent(model: Checkpoint, ids: Tensor, mask: Tensor | None) -> Part:
    """Multi-head latent attention: https://arxiv.org/abs/2405.04434, section 2.1 and appendix C.

    Keys and values come from one latent, the part of a key that turns from another, which all
    heads share. With YaRN, scores are multiplied as well: `DeepseekV2Attention.__init__`.
    """
    config, fields = model.config, rope.parameters(model.config)
    plain, turned = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    turn = rope.rotary(fields, turned, positions(ids, mask), neighbours=True)
    seen, scale = visible(ids, mask), (plain + turned) ** -0.5
    if everywhere := fields.get("mscale_all_dim"):
        scale *= rope.yarn_scale(fields, everywhere) ** 2

    def attend(n: int, x: Tensor) -> Tensor:
        at = f"model.layers.{n}.self_attn"
        q = heads(queries(model, at, x))
        low = model.linear(f"{at}.kv_a_proj_with_mqa", x)
        shared = turn(low[:, :, None, -turned:]).expand(-1, -1, q.shape[2], -1)
        low = latent_norm(model, f"{at}.kv_a_layernorm", low[..., :-turned])
        kv = heads(model.linear(f"{at}.kv_b_proj", low))
        q = torch.cat((q[..., :plain], turn(q[..., plain:])), -1)
        k, v = torch.cat((kv[..., :plain], shared), -1), kv[..., plain:]
        return model.linear(f"{at}.o_proj", attention(q, k, v, seen, scale))

    def heads(x: Tensor) -> Tensor:
        each: Tensor = x.unflatten(-1, (config["num_attention_heads"], -1))
        return each

    return attend


def queries(model: Checkpoint, at: str, x: Tensor) -> Tensor:
    """[B, S, H] -> [B, S, heads * D]: through a latent of their own, unless its rank is null."""
    if model.config["q_lora_rank"] is None:
        return model.linear(f"{at}.q_proj", x)
    low = latent_norm(model, f"{at}.q_a_layernorm", model.linear(f"{at}.q_a_proj", x))
    return model.linear(f"{at}.q_b_proj", low)


def latent_norm(model: Checkpoint, key: str, x: Tensor) -> Tensor:
    """A latent's norm: its epsilon is the default of `DeepseekV2RMSNorm`, not the config's."""
    return rms_norm(x, 1e-6) * model[f"{key}.weight"]


def softmax_routes(model: Checkpoint, key: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """V2's `MoEGate.forward`: a group's score is that of its best expert.

    Weights that are made to sum to 1 are not scaled.
    """
    config = model.config
    scores = model.linear(key, x).softmax(-1)
    if config["topk_method"] == "group_limited_greedy":
        scores = limited(scores, config["n_group"], config["topk_group"], 1, 0.0)
    weights, chosen = scores.topk(config["num_experts_per_tok"])
    if config["norm_topk_prob"]:
        return chosen, weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return chosen, weights * config["routed_scaling_factor"]


def sigmoid_routes(model: Checkpoint, key: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """V3's `MoEGate.forward`: a group's score is the sum of its best two.

    The bias helps to choose and weighs nothing. Experts outside the best groups are never chosen,
    even if a bias makes all scores inside negative. (The first published version gave them the
    score 0, which then won; `Gate.forward` of inference/model.py in
    https://github.com/deepseek-ai/DeepSeek-V3 was corrected in the same way.)
    """
    config = model.config
    scores = model.linear(key, x).sigmoid()
    biased = scores + model[f"{key}.e_score_correction_bias"]
    allowed = limited(biased, config["n_group"], config["topk_group"], 2, -torch.inf)
    chosen = allowed.topk(config["num_experts_per_tok"]).indices
    weights = scores.gather(-1, chosen)
    if config["norm_topk_prob"]:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return chosen, weights * config["routed_scaling_factor"]
