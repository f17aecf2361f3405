"""The model is not what it should be: its class, its backend, or blocks that do not stream.

The result is an instance of the stock class and of its family's class, runs the attention backend
that was asked for, has stock's settings, and its plan streams every block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import rabbitllm
from harness.measuring.checkpoints import stock_class
from harness.measuring.checks import Outcome, verdict
from harness.measuring.contract import blocks
from harness.measuring.references.model import OriginalModel
from harness.measuring.subject import Subject
from rabbitllm.families import family_of
from rabbitllm.streaming.plan import Place
from rabbitllm.streaming.stages import REST

NAMES = {"architectures"}
"""Settings that no forward reads: a type that is another's under a new name has its own."""


def run(subject: Subject) -> Outcome:
    """Loads the model and looks at what came out."""
    row, model = subject.cell.architecture, subject.streamed
    plan, names = model.streaming_plan, list(blocks(model))
    family = family_of(row.model_type)
    resident = [name for name in names if not _streams(name, plan.places)]
    wrong = []
    if not isinstance(model, stock_class(subject.cell)):
        wrong.append(f"{type(model).__name__} is no {row.model_class}")
    if not isinstance(model, getattr(rabbitllm, row.family_class)):
        wrong.append(f"it is no {row.family_class}")
    if (family.class_name, family.name) != (row.family_class, row.family):
        wrong.append(
            f"matrix/architectures.toml says {row.family}, rabbitllm/families.py {family.name}"
        )
    if model.active_attention_implementation != subject.cell.backend.id:
        wrong.append(
            f"it runs {model.active_attention_implementation}, asked for {subject.cell.backend.id}"
        )
    if training := [name for name, module in model.named_modules() if module.training]:
        wrong.append(f"{training[0] or 'it'}.training is True: dropout is active")
    wrong += other_settings(model, subject.reference)
    if not names:
        wrong.append("it has no blocks that could stream")
    if resident:
        wrong.append(f"{', '.join(resident)} do not stream")
    figures = {
        "blocks": len(names),
        "stages": len(plan.places.keys() - {REST}),
        "slots": plan.slots,
        "device_bytes": plan.device_bytes[model.device],
        "weight_bytes": sum(p.nbytes for p in model.parameters()),
    }
    return verdict(not wrong, figures, "; ".join(wrong))


def other_settings(model: Any, stock: Any) -> Iterator[str]:
    """Yields settings of the config, and of generation, that are not stock's, in words."""
    if isinstance(stock, OriginalModel):
        return
    for kind in ("config", "generation_config"):
        ours, theirs = (getattr(side, kind).to_dict() for side in (model, stock))
        for name in sorted((ours.keys() | theirs.keys()) - NAMES):
            if ours.get(name) != theirs.get(name):
                yield f"{kind}.{name} is {ours.get(name)}, stock's is {theirs.get(name)}"


def _streams(block: str, places: Mapping[str, Place]) -> bool:
    """Whether a block's stage, or the stages that it was split into, all stream."""
    own = [place for name, place in places.items() if f"{name}.".startswith(f"{block}.")]
    return bool(own) and not any(place.resident for place in own)
