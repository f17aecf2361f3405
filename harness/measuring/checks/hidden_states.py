"""Hidden states, or attentions, are not given as asked for.

As many as layers and one more: the embedding's first, last what the head gets, and between them
what layers give, in their order. Where the backend computes attentions, each row of them sums to 1,
or, beside a sink, to no more.
The streamed model's are stock's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.measuring.checks import Outcome
from harness.measuring.checks.invariance import Pair, held
from harness.measuring.contract import text_blocks
from harness.measuring.parity import close
from harness.measuring.subject import Subject


def run(subject: Subject) -> Outcome:
    """Compares with what embedding and head see, and the streamed model's with stock's."""
    layers = subject.reference.config.get_text_config().num_hidden_layers
    attends = subject.cell.backend.id == "eager"
    answers: list[list[Tensor]] = []

    @torch.no_grad()
    def ask(model: Any) -> Iterator[Pair]:
        seen: dict[str, Tensor] = {}
        given_by: dict[str, Tensor] = {}
        handles = [
            *(
                block.register_forward_hook(
                    lambda _module, _args, output, name=name: given_by.update(
                        {name: output if isinstance(output, Tensor) else output[0]}
                    )
                )
                for name, block in text_blocks(model).items()
            ),
            model.get_input_embeddings().register_forward_hook(
                lambda _module, _args, output: seen.update(embedded=output)
            ),
            model.get_output_embeddings().register_forward_pre_hook(
                lambda _module, args: seen.update(headed=args[0])
            ),
        ]
        try:
            output = model(
                subject.tokens,
                use_cache=False,
                output_hidden_states=True,
                output_attentions=attends,
            )
        finally:
            for handle in handles:
                handle.remove()
        states = output.hidden_states or ()
        given = output.attentions or () if attends else ()
        answers.append([*states, *given])
        yield Pair(
            "number of hidden states", torch.tensor([len(states)]), torch.tensor([layers + 1])
        )
        if states:
            yield Pair("the first hidden state", states[0], seen["embedded"])
            for state, (name, due) in zip(states[1:-1], given_by.items(), strict=False):
                yield Pair(f"the hidden state behind {name}", state, due)
            if "headed" in seen:  # not where the head's hooks are passed by
                yield Pair("the last hidden state", states[-1], seen["headed"])
        yield Pair("logits with hidden states", output.logits, subject.alone(model))
        if attends:
            yield Pair("number of attentions", torch.tensor([len(given)]), torch.tensor([layers]))
            # A sink takes a share that is given to no token.
            sinks = any(name.endswith("sinks") for name, _ in model.named_parameters())
            for number, one in enumerate(given):
                total = one.sum(-1)
                due = total.clamp(max=1) if sinks else torch.ones_like(total)
                yield Pair(f"sums of attention {number}", total, due)

    found = held(subject, ask)
    if found.status == "pass" and len(answers) == 2:  # stock's come first, where it is asked
        for number, (due, one) in enumerate(zip(*answers, strict=True)):
            if not close(one, due, subject.tolerance):
                return Outcome("fail", found.figures, f"number {number} of them is not stock's")
    # Layers that are called past their hooks give none, and that is no fault of the answers.
    return replace(found, status="stock-wrong") if found.status == "reference-broken" else found
