"""A small run of the soak: good clients are answered while others misbehave."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.serving_soak.clients import Soak
from benchmarks.serving_soak.measure import growth, report, soak
from benchmarks.serving_soak.misdeeds import MISDEEDS


def test_good_clients_are_answered_and_nothing_is_kept(talker: Path) -> None:
    arguments = [str(talker), "--device", "cpu", "--host-memory", "min"]
    soaked = asyncio.run(soak(arguments, 4 * len(MISDEEDS), 8))
    assert not soaked.wrong, report(soaked)
    assert {name for name, _ in soaked.statuses} == {"good", *MISDEEDS}
    assert len(soaked.seconds) == 2 * len(MISDEEDS) + 4
    assert soaked.listing
    for what in ("threads", "descriptors"):
        assert soaked.after[what] <= soaked.before[what], report(soaked)


def test_memory_that_keeps_growing_is_wrong() -> None:
    soaked = Soak(0, early={"RSS MiB": 1000.0}, after={"RSS MiB": 1090.0})
    assert not growth(soaked)
    soaked.after["RSS MiB"] = 1110.0
    assert growth(soaked) == ["the server held 1000 MiB after 30% of the requests, then 1110"]
