from __future__ import annotations

import pytest

from harness.stock.differences import differences

BEFORE = {
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
