from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest

from rabbitllm.utils.memory import (
    available_host_memory,
    check_budget,
    format_size,
    parse_size,
    total_host_memory,
)

GIB = 2**30
SYSTEM = 100 * GIB
Memory = namedtuple("Memory", "available total")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0),
        (4294967296, 4 * GIB),
        (2**70 + 1, 2**70 + 1),
        ("4294967296", 4 * GIB),
        ("4GiB", 4 * GIB),
        (" 4 gib ", 4 * GIB),
        ("1.5 GB", 1_500_000_000),
        ("0.1MB", 100_000),
        ("500MB", 500_000_000),
        ("512kib", 512 * 1024),
        ("3 B", 3),
        ("2TiB", 2 * 2**40),
        (4e9, 4_000_000_000),
        (1e16, 10**16),
        ("4G", 4 * GIB),
        ("4g", 4 * GIB),
        ("4Gi", 4 * GIB),
        ("512 M", 512 * 2**20),
        ("4 GB", 4_000_000_000),
        ("1e9", 10**9),
        ("1.5e9", 1_500_000_000),
        ("1E3 KiB", 1000 * 1024),
    ],
)
def test_sizes_as_people_write_them(text: Any, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "four", "4 4", "4GiBs", "4GG", "-1", -1, "1e", "e9", "1e999", "0x10", ".5", "4,5GB",
     "auto", None, True, float("nan"), float("inf"), "٤GiB"],
)  # fmt: skip
def test_what_is_no_size_is_refused_with_examples(text: Any) -> None:
    with pytest.raises(ValueError, match=r"is no size\. Write bytes, or a number and a unit: 4GiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("50%", GIB), ("12.5 %", GIB // 4), ("100%", 2 * GIB), ("0%", 0)]
)
def test_a_share_is_of_what_there_is(text: str, expected: int) -> None:
    assert parse_size(text, lambda: 2 * GIB) == expected


@pytest.mark.parametrize("text", ["101%", "-5%", "%", "50%%", "half"])
def test_what_is_no_share_is_refused(text: str) -> None:
    for understand in (check_budget, lambda each: parse_size(each, lambda: GIB)):
        with pytest.raises(ValueError, match="is no size"):
            understand(text)


def test_a_share_of_nothing_is_no_size() -> None:
    with pytest.raises(ValueError, match="'50%' is no size"):
        parse_size("50%")


@pytest.mark.parametrize("asked", ["auto", "min", "4G", "50%", 4 * GIB])
def test_a_budget_is_a_size_a_share_or_a_word(asked: int | str) -> None:
    check_budget(asked)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536 * 1024, "1.50 MiB"),
        (GIB - 1, "1024.00 MiB"),
        (4 * GIB, "4.00 GiB"),
        (5000 * GIB, "5000.00 GiB"),
    ],
)
def test_sizes_for_people(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(SYSTEM, 2 * SYSTEM))
    return Tree(tmp_path)


class Tree:
    """A made-up /proc and /sys/fs/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroup = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroup.mkdir()

    def member(self, *lines: str) -> None:
        (self.proc / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))

    def v2(self, path: str, limit: int | str, used: int = 0, inactive: int = 0) -> None:
        self._write(path, f"anon 1\ninactive_file {inactive}\nactive_file 7\n", {
            "memory.max": limit, "memory.current": used})  # fmt: skip

    def v1(self, path: str, limit: int, used: int = 0, inactive: int = 0) -> None:
        self._write(f"memory/{path}", f"inactive_file 3\ntotal_inactive_file {inactive}\n", {
            "memory.limit_in_bytes": limit, "memory.usage_in_bytes": used})  # fmt: skip

    def _write(self, path: str, stat: str, values: dict[str, int | str]) -> None:
        folder = self.cgroup / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.stat").write_text(stat)
        for name, value in values.items():
            (folder / name).write_text(f"{value}\n")

    def available(self) -> int:
        return available_host_memory(self.proc, self.cgroup)


def test_without_cgroups_it_is_what_the_system_has(tree: Tree) -> None:
    assert tree.available() == SYSTEM
    tree.member()
    assert tree.available() == SYSTEM


def test_a_v2_limit_less_what_is_used_with_page_cache_to_give_back(tree: Tree) -> None:
    tree.member("0::/user.slice/session")
    tree.v2("user.slice/session", 10 * GIB, used=7 * GIB, inactive=2 * GIB)
    assert tree.available() == 5 * GIB


def test_the_limit_that_slows_down_counts_too(tree: Tree) -> None:
    tree.member("0::/a")
    tree.v2("a", 10 * GIB, used=1 * GIB)
    (tree.cgroup / "a" / "memory.high").write_text("max\n")
    assert tree.available() == 9 * GIB
    (tree.cgroup / "a" / "memory.high").write_text(f"{4 * GIB}\n")
    assert tree.available() == 3 * GIB


def test_the_tightest_of_nested_groups_counts(tree: Tree) -> None:
    tree.member("0::/a/b/c")
    tree.v2("a/b/c", 30 * GIB)
    tree.v2("a/b", 20 * GIB, used=15 * GIB)
    tree.v2("a", 8 * GIB, used=1 * GIB)
    assert tree.available() == 5 * GIB
    tree.v2("a", 8 * GIB, used=4 * GIB)
    assert tree.available() == 4 * GIB


def test_groups_beside_the_way_up_do_not_count(tree: Tree) -> None:
    tree.member("0::/a/b")
    tree.v2("a/b", 30 * GIB)
    tree.v2("a/other", 1 * GIB)
    tree.v2("b", 1 * GIB)
    assert tree.available() == 30 * GIB


def test_a_container_sees_its_own_group_as_the_root(tree: Tree) -> None:
    tree.member("0::/")
    tree.v2("", 6 * GIB, used=2 * GIB)
    assert tree.available() == 4 * GIB


def test_unlimited_groups_do_not_count(tree: Tree) -> None:
    tree.member("0::/a/b", "5:memory:/a")
    tree.v2("a/b", "max", used=3 * GIB)
    tree.v2("a", "max")
    tree.v1("a", 9223372036854771712, used=3 * GIB)
    assert tree.available() == SYSTEM


def test_a_limit_above_what_the_system_has_is_none(tree: Tree) -> None:
    tree.member("0::/a")
    tree.v2("a", 500 * GIB)
    assert tree.available() == SYSTEM


def test_v1_limits_count_up_to_the_root_of_their_controller(tree: Tree) -> None:
    tree.member("9:cpu,cpuacct:/a", "4:memory:/docker/abc", "1:name=systemd:/docker/abc")
    tree.v1("docker/abc", 4 * GIB, used=3 * GIB, inactive=1 * GIB)
    tree.v1("docker", 9 * GIB)
    tree.v1("", 9223372036854771712)
    assert tree.available() == 2 * GIB


def test_a_v1_container_shows_its_limit_at_the_root_under_the_hosts_path(tree: Tree) -> None:
    tree.member("4:memory:/docker/abc")
    tree.v1("", 3 * GIB, used=1 * GIB)
    assert tree.available() == 2 * GIB


def test_other_controllers_of_v1_do_not_count(tree: Tree) -> None:
    tree.member("4:cpu,memory_other:/a")
    tree.v1("a", 1 * GIB)
    assert tree.available() == SYSTEM


def test_v1_and_v2_mounted_together_both_count(tree: Tree) -> None:
    tree.member("4:cpu,memory:/a", "0::/b")
    tree.v1("a", 6 * GIB)
    tree.v2("b", 5 * GIB)
    assert tree.available() == 5 * GIB
    tree.v1("a", 2 * GIB)
    assert tree.available() == 2 * GIB


def test_an_exceeded_limit_leaves_nothing(tree: Tree) -> None:
    tree.member("0::/a")
    tree.v2("a", 1 * GIB, used=2 * GIB)
    assert tree.available() == 0


@pytest.mark.parametrize("path", ["/../../elsewhere", "/a:b/c"])
def test_odd_paths_are_followed_no_further_than_the_root(tree: Tree, path: str) -> None:
    (tree.cgroup.parent / "elsewhere").mkdir()
    tree.member(f"0::{path}")
    tree.v2("", 3 * GIB)
    assert tree.available() == 3 * GIB


def test_this_machine_has_some_memory() -> None:
    assert 0 < available_host_memory() <= psutil.virtual_memory().total


def test_all_of_it_is_the_machines_or_the_tightest_limit(tree: Tree) -> None:
    assert total_host_memory(tree.proc, tree.cgroup) == 2 * SYSTEM
    tree.member("0::/a/b")
    tree.v2("a/b", 30 * GIB, used=29 * GIB)
    tree.v2("a", 20 * GIB, used=1 * GIB)
    assert total_host_memory(tree.proc, tree.cgroup) == 20 * GIB
