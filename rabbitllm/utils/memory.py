"""How much memory there is, and sizes as people write them."""

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import psutil

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
} | {
    unit + ending: 2**power
    for unit, power in (("K", 10), ("M", 20), ("G", 30), ("T", 40))
    for ending in ("", "I", "IB")  # a lone letter is binary, as docker, systemd and dd have it
}
NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?"
SIZE = re.compile(rf"\s*({NUMBER})\s*(%|[A-Za-z]*)\s*")


def parse_size(size: int | float | str, whole: Callable[[], int] | None = None) -> int:
    """Bytes of a size such as 4294967296, "4GiB", "4G", "1.5 GB", "1e9" or "50%".

    Args:
        size: a number of bytes, or a number and a unit.
        whole: asked for the bytes that 100% is; without it no size is a share.

    Raises:
        ValueError: not a size.
    """
    number, unit = _number_and_unit(size)
    if unit != "%":
        return int(number * UNITS[unit])
    if whole is None:
        raise _no_size(size)
    return int(number * whole() / 100)


def check_budget(asked: int | float | str) -> None:
    """Raises ValueError if this is neither a size, nor a share of a memory, nor "auto" or "min"."""
    if asked not in ("auto", "min"):
        _number_and_unit(asked)


def _number_and_unit(size: int | float | str) -> tuple[Decimal, str]:
    match = SIZE.fullmatch(str(size))
    if not match:
        raise _no_size(size)
    number, unit = Decimal(match[1]), match[2].upper()
    if unit not in UNITS and not (unit == "%" and number <= 100):
        raise _no_size(size)
    return number, unit


def _no_size(size: object) -> ValueError:
    return ValueError(
        f"{size!r} is no size. Write bytes, or a number and a unit: 4GiB, 500MB, 50%, 'auto', "
        "'min'."
    )


def format_size(nbytes: int) -> str:
    """A size for people: "1.50 GiB"."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.2f} {name}"
    return f"{nbytes} B"


PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
"""Where Linux mounts procfs and the cgroup file system; other systems have neither."""


def available_host_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Bytes that this process can still take, under the tightest limit that applies.

    That is what the system has available, and the room in every cgroup (v1 or v2) that the process
    is in, up to the root. Clean page cache counts as free: the kernel gives it back.

    Args:
        proc: where procfs is mounted.
        cgroup: where the cgroup file system is mounted.
    """
    rooms = [limit.room() for limit in _limits(proc, cgroup)]
    return max(0, min([psutil.virtual_memory().available, *rooms]))


def total_host_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Bytes that this process could take were it alone: the machine's, or the tightest limit."""
    limits = [limit.nbytes for limit in _limits(proc, cgroup)]
    return min([psutil.virtual_memory().total, *limits])


class _Limit(NamedTuple):
    """What a cgroup may take.

    Attributes:
        group: its folder.
        nbytes: the limit.
        usage: the file that says what it takes.
        reclaimable: the line of memory.stat that says how much of that is clean page cache.
    """

    group: Path
    nbytes: int
    usage: str
    reclaimable: str

    def room(self) -> int:
        """Bytes that are left."""
        lines = (self.group / "memory.stat").read_text().splitlines()
        stat = dict(line.split() for line in lines)
        used = int((self.group / self.usage).read_text()) - int(stat.get(self.reclaimable, 0))
        return self.nbytes - used


def _limits(proc: Path, cgroup: Path) -> Iterator[_Limit]:
    """The limits of every cgroup that this process is in."""
    membership = proc / "self/cgroup"
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0":  # killed above the one, slowed down above the other
            for name in ("memory.max", "memory.high"):
                yield from _limits_of(cgroup, path, name, "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _limits_of(cgroup / "memory", path, *files)


def _limits_of(root: Path, path: str, limit: str, usage: str, reclaimable: str) -> Iterator[_Limit]:
    """Those of each limited cgroup from `path` up to `root`, a container's own group."""
    folder = root / path.strip("/")
    for group in [folder, *folder.parents]:
        if group != root and root not in group.parents:
            break
        if not (group / limit).is_file():
            continue
        text = (group / limit).read_text().strip()
        if text != "max":  # cgroup v1 writes a number near 2**63 instead
            yield _Limit(group, int(text), usage, reclaimable)
