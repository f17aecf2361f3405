from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cpu import cgroup as cpu_cgroup
from benchmarks.cpu.cgroup import V1, V2, CgroupError, Group, find_parent, limited, parse_counts


def test_counts_are_read_from_either_version() -> None:
    assert parse_counts("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")["oom_kill"] == 3
    events = "low 0\nhigh 12\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n"
    assert parse_counts(events) == {
        "low": 0,
        "high": 12,
        "max": 7,
        "oom": 2,
        "oom_kill": 1,
        "oom_group_kill": 0,
    }


def test_version_1_limits_below_the_own_group(tmp_path: Path) -> None:
    (tmp_path / "memory/job/7").mkdir(parents=True)
    membership = "5:cpu:/\n4:memory:/job/7\n0::/\n"
    assert find_parent(membership, tmp_path) == (tmp_path / "memory/job/7", V1)


@pytest.mark.parametrize(
    ("path", "parent"), [("/", "."), ("/user.slice/me.scope", "user.slice"), ("/one", ".")]
)
def test_version_2_limits_beside_the_own_group(tmp_path: Path, path: str, parent: str) -> None:
    (tmp_path / path.strip("/")).mkdir(parents=True, exist_ok=True)
    (tmp_path / parent / "cgroup.subtree_control").write_text("cpu memory pids\n")
    assert find_parent(f"0::{path}\n", tmp_path) == (tmp_path / parent, V2)


@pytest.mark.parametrize("control", [None, "cpu pids\n"])
def test_without_a_memory_controller_the_error_says_what_is_needed(
    tmp_path: Path, control: str | None
) -> None:
    if control is not None:
        (tmp_path / "cgroup.subtree_control").write_text(control)
    with pytest.raises(CgroupError, match=r"needs Linux, root.*--memory none"):
        find_parent("4:memory:/gone\n0::/\n", tmp_path)


def test_a_folder_that_no_group_can_be_made_in_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.write_text("not a folder, so nothing can be made in it")
    monkeypatch.setattr(cpu_cgroup, "find_parent", lambda *_: (closed, V1))
    with pytest.raises(CgroupError, match=r"No cgroup can be made in .*closed"), limited(1 << 30):
        pytest.fail("there is no group")


@pytest.mark.parametrize(
    ("interface", "events", "killed"),
    [(V1, "under_oom 0\noom_kill 2\n", 2), (V2, "oom 1\noom_kill 1\n", 1)],
)
def test_a_group_tells_what_was_killed_and_the_peak(
    tmp_path: Path, interface: cpu_cgroup.Interface, events: str, killed: int
) -> None:
    group = Group(tmp_path, interface)
    (tmp_path / interface.events).write_text(events)
    assert group.killed() == killed
    assert group.peak() is None
    (tmp_path / interface.peak).write_text("1799999488\n")
    assert group.peak() == 1799999488
