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
    settings = list(other_settings(published.streamed, published.reference))
    if settings:
        return Outcome("fail", message="; ".join(settings))
    other = first_other(generated(published.streamed, values.configured), stock)
    said = f"the streamed model's generated token {other} is the first other one"
    return verdict(other is None, {"first_divergent_token": other}, said)
