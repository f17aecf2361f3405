"""The streamed model does not generate as generation_config.json has stock generate."""

from __future__ import annotations

from harness.measuring.checks import Outcome, verdict
from harness.measuring.checks.generation_config import generated, unfit
from harness.measuring.checks.split_and_load import other_settings
from harness.measuring.golden.values import first_other, read_values
from harness.measuring.subject import Subject, reference_side


def run(subject: Subject) -> Outcome:
    """Has both generate from the golden checkpoint, with no other options than the prompts."""
    if reason := unfit(subject):
        return Outcome("not-run", message=reason)
    values = read_values(subject.cell.architecture.id)
    published = subject.published(values.sha256)
    with reference_side():
        stock = generated(published.reference, values.configured)
    wrong = list(other_settings(published.streamed, published.reference))
    other = first_other(generated(published.streamed, values.configured), stock)
    if other is not None:
        wrong.append(f"the streamed model's generated token {other} is the first other one")
    return verdict(not wrong, {"first_divergent_token": other}, "; ".join(wrong))
