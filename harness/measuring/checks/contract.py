"""Stock runs, but does not call its layers as streaming needs it.

Weights come and go by hooks of the decoder's layers, of embedding and head. What hooks see of stock
itself is the contract, which a release may change without being wrong.
"""

from __future__ import annotations

from harness.measuring.checks import Outcome, verdict
from harness.measuring.contract import described, missing, text_blocks, watch
from harness.measuring.references.model import OriginalModel
from harness.measuring.subject import Subject


def run(subject: Subject) -> Outcome:
    """Watches stock run a prompt, and leaves what it saw in the subject's probes."""
    stock = subject.reference
    if isinstance(stock, OriginalModel):
        return Outcome("not-run", message="stock has no such model")
    seen, cache = watch(stock)
    names = list(text_blocks(stock))
    wrong = missing(seen, names)
    if names and seen[names[0]].results:
        subject.probes.update(described(stock, names[0], seen[names[0]], cache))
    return verdict(not wrong, {}, "; ".join(wrong))
