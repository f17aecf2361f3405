from __future__ import annotations

import pytest

from harness.stock.differences import QUESTIONS, ROUNDING, differences

BEFORE = {
    QUESTIONS: "abc",
    "llama: builds": "yes",
    "llama: config rope_theta": "1.0",
    "llama: config inner": "{'a': 1}",
    "llama: parameter model.a.weight": "[4, 8]",
    "llama: layer Layer": "(self, x, cache_position=None, **kwargs)",
    "caches: Cache.crop": "(self, max_length)",
    "caches: Old.crop": "(self)",
    "masks: create": "(a, b=(1, 2))",
    "attention: eager": "there",
}


def told(after):
    kept = {fact: value for fact, value in after.items() if value is not None}
    return [(d.subject, d.what, d.how) for d in differences(BEFORE, kept)]


def test_the_same_facts_differ_in_nothing():
    assert told(BEFORE) == []


@pytest.mark.parametrize(
    ("fact", "value", "difference"),
    [
        ("llama: config rope_theta", "2.0", ("llama", "config rope_theta", "1.0 -> 2.0")),
        ("llama: config rope_theta", None, ("llama", "config rope_theta", "gone")),
        ("llama: config inner", "{'a': 2}", ("llama", "config inner", "other defaults inside")),
        ("llama: config more", "1", ("llama", "config more", "new")),
        (
            "llama: parameter model.a.weight",
            "[8, 8]",
            ("llama", "parameter model.a.weight", "[4, 8] -> [8, 8]"),
        ),
        (
            "llama: layer Layer",
            "(self, x, *, y=None, **kwargs)",
            ("llama", "layer Layer", "without cache_position=None, with *, y=None"),
        ),
        ("caches: Cache.crop", "(self, n)", ("caches", "Cache.crop", "without max_length, with n")),
        ("caches: Old.crop", None, ("caches", "Old", "gone")),
        ("masks: create", "(b=(1, 2), a)", ("masks", "create", "in another order")),
        ("masks: create", "(a, b=(1, 3))", ("masks", "create", "without b=(1, 2), with b=(1, 3)")),
        ("attention: flash", "there", ("attention", "flash", "new")),
        ("llama: builds", "no, ValueError: x", ("llama", "builds", "yes -> no, ValueError: x")),
        ("gemma: config a", "1", ("gemma", "model type", "new")),
    ],
)
def test_what_changed_is_said_in_its_own_terms(fact, value, difference):
    assert told({**BEFORE, fact: value}) == [difference]


def test_of_a_new_class_and_a_new_type_only_that_is_said():
    cache = {"caches: New.a": "(self)", "caches: New.b": "(self)"}
    model = {"t: builds": "yes", "t: config x": "1"}
    assert told({**BEFORE, **cache, **model}) == [
        ("caches", "New", "new"),
        ("t", "model type", "new"),
    ]


ANSWERS = {
    QUESTIONS: "abc",
    "tokens: mixtral": '{"a rabbit": [1, 2], "": []}',
    "logits: llama": "[1.0, -4.0]",
}


def other(fact, value, before=ANSWERS):
    return [(d.subject, d.what, d.how) for d in differences(before, {**ANSWERS, fact: value})]


def test_other_token_ids_are_named_with_a_text():
    (found,) = other("tokens: mixtral", '{"a rabbit": [1, 3], "": []}')
    assert found == (
        "tokens",
        "mixtral",
        "other ids of 1 of 2 texts, such as 'a rabbit': [1, 2] -> [1, 3]",
    )
    long = f'{{"a rabbit": {[1] * 40}, "": []}}'
    (found,) = other("tokens: mixtral", long)
    assert found[2] == "other ids of 1 of 2 texts, such as 'a rabbit'"


@pytest.mark.parametrize(
    ("logits", "how"),
    [
        (f"[{1.0 + 4 * ROUNDING * 0.9}, -4.0]", None),
        ("[1.1, -4.0]", "off by up to 0.025 of the largest logit"),
        ("[NaN, -4.0]", "off by up to nan of the largest logit"),
        ("no, KeyError: 'x'", "answers -> no, KeyError: 'x'"),
    ],
)
def test_logits_are_other_ones_beyond_rounding(logits, how):
    assert other("logits: llama", logits) == ([("logits", "llama", how)] if how else [])


@pytest.mark.parametrize("asked", [{QUESTIONS: "def"}, {}])
def test_answers_to_other_questions_are_not_compared(asked):
    before = {fact: value for fact, value in ANSWERS.items() if fact != QUESTIONS} | asked
    assert other("logits: llama", "[5.0, 5.0]", before) == [
        (subject, "all", "not compared: asked otherwise") for subject in ("tokens", "logits")
    ]


def test_who_answers_for_the_first_time_is_new():
    assert other("logits: phi", "[1.0]") == [("logits", "phi", "new")]
