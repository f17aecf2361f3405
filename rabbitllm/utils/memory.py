"""How much memory there is, and sizes as people write them."""

import re
from decimal import Decimal
from pathlib import Path

import psutil

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_size(size: int | str) -> int:
    """Bytes of a size such as 4294967296, "4GiB" or "1.5 GB".

    Raises:
        ValueError: not a size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", str(size))
    if not match or match[2].upper() not in UNITS:
        raise ValueError(
            f"{size!r} is no size. Write bytes, or a number and a unit: 4GiB, 500MB, 'auto', 'min'."
        )
    return int(Decimal(match[1]) * UNITS[match[2].upper()])


def format_size(nbytes: int) -> str:
    """A size for people: "1.50 GiB"."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.2f} {name}"
    return f"{nbytes} B"


def available_host_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process can still take, under the tightest limit that applies.

    That is what the system has available, and the room in every cgroup (v1 or v2) that the process
    is in, up to the root. Clean page cache counts as free: the kernel gives it back.

    Args:
        proc: where procfs is mounted.
        cgroup: where the cgroup file system is mounted.
    """
    limits = [psutil.virtual_memory().available]
    membership = proc / "self/cgroup"
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            for limit in (
                "memory.max",
                "memory.high",
            ):  # killed above the one, slowed down the other
                limits += _cgroup_room(cgroup, path, limit, "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = cgroup / "memory"
            limits += _cgroup_room(
                root, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            )
    return max(0, min(limits))


def _cgroup_room(root: Path, path: str, limit: str, usage: str, reclaimable: str) -> list[int]:
    """Free bytes in each limited cgroup from `path` up to `root`, a container's own group."""
    rooms = []
    folder = root / path.strip("/")
    for group in [folder, *folder.parents]:
        if group != root and root not in group.parents:
            break
        if not (group / limit).is_file():
            continue
        text = (group / limit).read_text().strip()
        if text == "max":
            continue  # cgroup v1 writes a number near 2**63 instead
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        rooms.append(int(text) - int((group / usage).read_text()) + int(stat.get(reclaimable, 0)))
    return rooms
