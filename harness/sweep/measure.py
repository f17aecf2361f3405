"""One model type in this process: built small, written, read by stock and streamed, compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)

from harness.measuring.checkpoints import SEED, own_memory, randomise
from harness.measuring.contract import blocks
from harness.measuring.parity import compare, first_divergent
from harness.records.failure import describe
from harness.sweep.results import Measured, Outcome
from harness.sweep.rules import Rules

if TYPE_CHECKING:  # an engine that cannot be imported is the type's failure
    from rabbitllm.streaming.plan import Plan

LARGEST = 20_000_000
"""Parameters of a model that still counts as small."""
PROMPT = 12
"""Tokens of the prompt."""
SPECIAL = 16
"""Ids below may have a meaning, such as an image's place."""
LENGTH = 4
"""Tokens generated."""


class SweepError(Exception):
    """Something is not as it must be; the message says what."""


@dataclass(frozen=True)
class Answer:
    """What a model says to the prompt.

    Attributes:
        logits: [1, PROMPT, vocabulary].
        tokens: the prompt and what follows greedily [PROMPT + LENGTH].
    """

    logits: Tensor
    tokens: Tensor


def stream_type(model_type: str, rules: Rules, folder: Path) -> Measured:
    """What became of a model type; nothing that is raised on the way escapes.

    Args:
        model_type: as in config.json.
        rules: how it is made small.
        folder: empty; the checkpoint goes there.
    """
    torch.set_num_threads(1)
    facts: dict[str, Any] = {}
    outcome: Outcome = "not-buildable"
    try:
        model = small_model(rules.config(model_type))
        facts |= {"written_by": type(model).__name__, "parameters": model.num_parameters()}
        facts["attention"] = str(model.config._attn_implementation)
        outcome = "reference-broken"
        model.save_pretrained(folder)
        reference = load_reference(folder, facts["attention"])
        facts |= {"model_class": type(reference).__name__, "blocks": len(blocks(reference))}
        expected = answer(reference)
        check_stock(expected, reference)
        outcome = "fails"
        streamed = load_streamed(folder, facts["attention"])
        facts["streamed"] = streaming_blocks(reference, streamed.streaming_plan)
        facts["embedding_streams"] = is_away(streamed.get_input_embeddings())
        facts["head_streams"] = is_away(streamed.get_output_embeddings())
        found = answer(streamed)
        facts["bytes_from_disk"] = streamed.streaming_stats()["bytes_from_disk"]
        check_equal(found, expected)
        check_streamed(facts)
    except Exception as error:  # whatever a type, a release or the engine raises is the result
        return Measured(outcome=outcome, **facts, **vars(describe(error)))
    return Measured(outcome="bit-equal" if facts["blocks"] else "no-blocks", **facts)


def small_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model that a type is published as, with seeded random weights.

    Args:
        config: of the type.

    Raises:
        SweepError: it is not small.
    """
    kind = published_as(config)
    with torch.device("meta"):
        size = kind.from_config(config).num_parameters()
    if size > LARGEST:
        raise SweepError(f"the smallest by these rules has {size:,} parameters")
    torch.manual_seed(SEED)
    model: PreTrainedModel = kind.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for _, tensor in sorted(model.state_dict().items()):
            randomise(tensor, generator)
    return model


def published_as(config: PretrainedConfig) -> Any:
    """The auto class that writes checkpoints as a type's authors do.

    Where the causal class is that of a composite config's text part, the class of the whole.
    """
    causal: Any = AutoModelForCausalLM._model_mapping[type(config)]
    is_text_part = causal.config_class is config.sub_configs.get("text_config")
    return AutoModelForImageTextToText if is_text_part else AutoModelForCausalLM


def load_reference(folder: Path, attention: str) -> PreTrainedModel:
    """The stock model, fully loaded into memory of its own.

    The backend is named, for else a model made of several may run several.

    Raises:
        SweepError: stock does not find what stock has written, and would make it up.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    model, info = loaded
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        raise SweepError(f"stock does not find in its own checkpoint: {names}")
    own_memory(model)
    model.requires_grad_(False)  # as streamed weights are; torch chooses kernels by it
    reference: PreTrainedModel = model.eval()
    return reference


def load_streamed(folder: Path, attention: str) -> Any:
    """The model under test, at the smallest budget that works: every block streams."""
    from rabbitllm import AutoModel  # an engine that cannot be imported is the type's failure

    return AutoModel.from_pretrained(
        folder,
        device="cpu",
        dtype="float32",
        attn_implementation=attention,
        host_memory="min",
        layer_shards_saving_path=folder / "store",
        show_layer_progress=False,
    )


@torch.no_grad()
def answer(model: Any) -> Answer:
    """What a model says to the sweep's prompt."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(SPECIAL, vocabulary, (1, PROMPT), generator=generator)
    torch.manual_seed(SEED)  # a few types draw random numbers even in evaluation
    logits: Tensor = model(input_ids=prompt).logits
    torch.manual_seed(SEED)
    tokens: Tensor = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=LENGTH,
        max_new_tokens=LENGTH,
        pad_token_id=0,
    )
    return Answer(logits, tokens[0])


def check_stock(first: Answer, reference: PreTrainedModel) -> None:
    """Makes sure that there is something to compare with.

    Raises:
        SweepError: stock's logits are not finite, or others the second time.
    """
    if not first.logits.isfinite().all():
        raise SweepError("stock's logits are not finite")
    second = answer(reference)
    if not (torch.equal(first.logits, second.logits) and torch.equal(first.tokens, second.tokens)):
        raise SweepError("stock answers differently the second time")


def check_equal(ours: Answer, stock: Answer) -> None:
    """Compares two answers.

    Raises:
        SweepError: a bit of the logits, or a token, differs.
    """
    figures = compare(ours.logits, stock.logits)
    if not figures["bit_equal"]:
        raise SweepError(f"the logits of the prompt differ by up to {figures['max_abs']:.3g}")
    position = first_divergent(ours.tokens, stock.tokens)
    if position is not None:
        raise SweepError(f"generated token number {position - PROMPT + 1} differs")


def streaming_blocks(reference: PreTrainedModel, plan: Plan) -> int:
    """How many of the blocks stream, whole or in parts."""
    moving = plan.away("host", "disk")
    return sum(
        any(f"{name}.".startswith(f"{block}.") for name in moving) for block in blocks(reference)
    )


def is_away(module: nn.Module | None) -> bool:
    """Whether a module's weights are not in memory while it does not run."""
    return module is not None and any(weight.is_meta for weight in module.parameters())


def check_streamed(facts: dict[str, Any]) -> None:
    """Makes sure that equal answers came from streamed blocks.

    Raises:
        SweepError: no block streamed, though there are some.
    """
    if facts["blocks"] and not (facts["streamed"] and facts["bytes_from_disk"]):
        raise SweepError(f"none of {facts['blocks']} blocks streamed")
