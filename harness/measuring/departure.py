"""Where stock first departs from the independent reference, asked when its answers are wrong.

Both read the golden text. The reference's projections, in the order that it computes them, are
compared with stock's modules of the same names: what goes into each, and what comes out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.measuring.golden.manifest import architectures
from harness.measuring.golden.values import REFERENCE, read_values
from harness.measuring.references import rope
from harness.measuring.references.checkpoint import Checkpoint
from harness.measuring.references.published import FORWARDS
from harness.measuring.subject import Subject

ROUNDING = 1e-4
"""As a fraction of the largest value."""
BEFORE = {
    ("q_proj", "k_proj", "v_proj", "qkv_proj", "q_a_proj", "kv_a_proj_with_mqa"): (
        "in the norm before the attention of layer {n}, or in the feed-forward before it"
    ),
    ("q_b_proj", "kv_b_proj"): "in the norm of the latent of layer {n}",
    ("o_proj", "dense"): "in the attention of layer {n}, behind its projections",
    ("gate_proj", "up_proj", "gate_up_proj", "fc1", "gate"): (
        "in the norm before the feed-forward of layer {n}"
    ),
    ("down_proj", "fc2"): "in the activation of the feed-forward of layer {n}",
    ("lm_head",): "in the last norm, or in the feed-forward of the last layer",
}
"""What lies before a projection, by the last part of its key."""


def departure(subject: Subject) -> str:
    """Where stock departs first, in a few words; nothing if it does not or nobody can tell."""
    name = subject.cell.architecture.id
    if name not in architectures() or subject.dtype != torch.float32:
        return ""
    values = read_values(name)
    if values.by != REFERENCE:
        return ""
    published = subject.published(values.sha256)
    text = torch.tensor([values.text])
    model = replace(Checkpoint.read(published.folder), steps=[])
    with torch.no_grad():
        logits = FORWARDS[model.config["model_type"]](model, text, None)
    seen, answer = observed(published.reference, text.to(subject.device))
    found = first(model.steps or [], seen)
    if not found and not alike(answer, logits):
        found = "behind the last layer: in the last norm, the head, or what caps logits"
    if not found:
        return ""
    if "attention of layer" in found and not turns_alike(published.reference, model.config, text):
        found += "; the rotary frequencies are not those of the config"
    return f"stock departs from the reference {found}"


@torch.no_grad()
def observed(stock: Any, text: Tensor) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """What went into each linear module of a text's decoder and came out, and the logits."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    modules = dict(stock.get_decoder().named_modules()) | {"lm_head": stock.get_output_embeddings()}
    handles = [
        module.register_forward_hook(
            lambda _module, args, output, name=name: seen.update({name: (args[0], output)})
        )
        for name, module in modules.items()
        if isinstance(module, nn.Linear)
    ]
    try:
        logits: Tensor = stock(text, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return seen, logits


def first(
    steps: list[tuple[str, Tensor, Tensor]], seen: Mapping[str, tuple[Tensor, Tensor]]
) -> str:
    """The place of the first step that stock does not take likewise, in words."""
    called = {layer for name in seen for layer in re.findall(r"layers\.(\d+)\.", name)}
    for key, given, result in steps:
        name = key.removeprefix("model.")
        number = "".join(re.findall(r"layers\.(\d+)\.", name))
        if number and number not in called:
            return f"in layer {number}, which does not run"
        if name not in seen:
            continue  # stock keeps it in another module, such as one for all experts
        for ours, due, words in (
            (seen[name][0], given, before(name, number)),
            (seen[name][1], result, f"in the weights or bias of {name}"),
        ):
            if not alike(ours, due):
                return words + place(ours, due)
    return ""


def before(name: str, number: str) -> str:
    """What lies before a projection, in words."""
    leaf = name.rpartition(".")[2]
    if number == "0" and leaf in next(iter(BEFORE)):
        return "in the embedding, or in the norm behind it"
    words = next((words for leaves, words in BEFORE.items() if leaf in leaves), f"before {name}")
    return words.format(n=number)


def place(ours: Tensor, due: Tensor) -> str:
    """From which position of the text on two values [1, S, ...] differ, in words."""
    if ours.numel() != due.numel() or due.dim() < 3:
        return ""
    off = (ours.cpu().reshape(due.shape) - due).abs().flatten(2).amax(-1)[0]
    return f", from position {int((~(off <= ROUNDING * due.abs().max())).int().argmax())} on"


def alike(ours: Tensor, due: Tensor) -> bool:
    """Whether two tensors hold the same values, in whatever shape, within rounding."""
    if ours.numel() != due.numel():
        return False
    off = (ours.detach().float().cpu().reshape(due.shape) - due).abs().max()
    return bool(off <= ROUNDING * due.abs().max())


def turns_alike(stock: nn.Module, config: Mapping[str, Any], text: Tensor) -> bool:
    """Whether stock's rotary frequencies are those of a config with one kind of them."""
    if "rope_local_base_freq" in config or "text_config" in config:
        return True
    fields = rope.parameters(config)
    heads = config["hidden_size"] // config["num_attention_heads"]
    width = config.get("qk_rope_head_dim") or config.get("head_dim") or heads
    width = int(width * fields["partial_rotary_factor"])
    due, _ = rope.SCALINGS[fields["rope_type"]](fields, width, text.shape[1])
    return all(alike(found, due) for found in _frequencies(stock))


def _frequencies(stock: nn.Module) -> Iterator[Tensor]:
    for name, buffer in stock.named_buffers():
        if name.endswith("inv_freq"):
            yield buffer
