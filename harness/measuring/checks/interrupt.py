"""An interrupt inside a block leaves something behind.

A forward is cut off by a KeyboardInterrupt, as Ctrl-C does. No weights stay bound, and the next
forward is answered as ever.
"""

from __future__ import annotations

import torch
from torch import nn

from harness.measuring.checks import Outcome, verdict
from harness.measuring.checks.residency import holds_weights
from harness.measuring.contract import text_blocks
from harness.measuring.parity import close
from harness.measuring.subject import Subject


def run(subject: Subject) -> Outcome:
    """Cuts one forward off, looks, and runs another one."""
    model, stock = subject.streamed, subject.stock_uncached
    found = text_blocks(model)
    names = list(found)
    middle = list(found[names[1]].modules())[-1]
    reached = cut_off(subject, middle)
    left = [name for name in names if holds_weights(found[name])]
    wrong = []
    if not reached:
        wrong.append("the interrupt did not come through")
    if left:
        wrong.append(f"after an interrupt {', '.join(left)} still hold weights")
    if not close(subject.uncached(model), stock, subject.tolerance):
        wrong.append("the forward behind an interrupt is answered differently from stock")
    return verdict(not wrong, {}, "; ".join(wrong))


@torch.no_grad()
def cut_off(subject: Subject, module: nn.Module) -> bool:
    """Runs a forward that is interrupted where a module begins; whether the interrupt came out."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    handle = module.register_forward_pre_hook(stop)
    try:
        subject.streamed(subject.prompt, use_cache=False)
    except KeyboardInterrupt:
        return True
    finally:
        handle.remove()
    return False
