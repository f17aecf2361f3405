"""A memory cgroup for one process, by version 1 or 2 of the kernel's interface."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

NEEDED = (
    "A memory limit needs Linux, root, and a cgroup file system with the memory controller that "
    "can be written to: in a container, one started with --privileged or with the host's "
    "/sys/fs/cgroup. Without one, run with --memory none."
)


class CgroupError(Exception):
    """This machine lets us make no memory cgroup."""


@dataclass(frozen=True)
class Interface:
    """The files of one version.

    Attributes:
        limit: most bytes of memory, page cache included.
        swap: the file that keeps swap out of it, if the kernel has one.
        swap_value: what to write there; None repeats the limit.
        events: counts of what happened, one a line.
        peak: most bytes ever charged.
    """

    limit: str
    swap: str
    swap_value: str | None
    events: str
    peak: str


V1 = Interface(
    limit="memory.limit_in_bytes",
    swap="memory.memsw.limit_in_bytes",
    swap_value=None,
    events="memory.oom_control",
    peak="memory.max_usage_in_bytes",
)
V2 = Interface(
    limit="memory.max",
    swap="memory.swap.max",
    swap_value="0",
    events="memory.events",
    peak="memory.peak",
)


@dataclass(frozen=True)
class Group:
    """A limited group.

    Attributes:
        folder: of its files.
        interface: which they are.
    """

    folder: Path
    interface: Interface

    @property
    def prefix(self) -> list[str]:
        """A command that joins the group, then becomes the command that follows it."""
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.folder / "cgroup.procs")]

    def killed(self) -> int:
        """How many of its processes the kernel killed for memory."""
        return parse_counts((self.folder / self.interface.events).read_text())["oom_kill"]

    def peak(self) -> int | None:
        """Most bytes ever charged, page cache included; None where the kernel does not say."""
        file = self.folder / self.interface.peak
        return int(file.read_text()) if file.is_file() else None


def parse_counts(text: str) -> dict[str, int]:
    """A file of names and numbers, such as memory.events or memory.oom_control."""
    return {name: int(number) for name, number in map(str.split, text.splitlines())}


def find_parent(membership: str, root: Path) -> tuple[Path, Interface]:
    """Where a group can be made by a process with this membership.

    Args:
        membership: what /proc/self/cgroup says.
        root: where the cgroup file systems are mounted.

    Returns:
        With version 1 the process's own group. With version 2 the group above it: one that holds
        processes cannot limit groups below it. The root may.

    Raises:
        CgroupError: neither version's memory controller is mounted.
    """
    for line in membership.splitlines():
        number, controllers, path = line.split(":", 2)
        own = path.strip("/")
        if "memory" in controllers.split(",") and (root / "memory" / own).is_dir():
            return root / "memory" / own, V1
        if number == "0":
            parent = (root / own).parent if own else root
            control = parent / "cgroup.subtree_control"
            if control.is_file() and "memory" in control.read_text().split():
                return parent, V2
    raise CgroupError(f"No cgroup with a memory controller is mounted at {root}. {NEEDED}")


@contextmanager
def limited(nbytes: int, root: Path = Path("/sys/fs/cgroup")) -> Iterator[Group]:
    """A group that holds at most `nbytes` of memory and no swap, for as long as the context.

    Raises:
        CgroupError: it cannot be made.
    """
    membership = Path("/proc/self/cgroup")
    if not membership.is_file():
        raise CgroupError(NEEDED)
    parent, interface = find_parent(membership.read_text(), root)
    group = Group(parent / f"rabbitllm-benchmark-{os.getpid()}", interface)
    with ExitStack() as stack:
        try:
            group.folder.mkdir()
            stack.callback(group.folder.rmdir)
            (group.folder / interface.limit).write_text(str(nbytes))
            if (group.folder / interface.swap).is_file():
                (group.folder / interface.swap).write_text(interface.swap_value or str(nbytes))
        except OSError as error:
            raise CgroupError(f"No cgroup can be made in {parent}: {error}. {NEEDED}") from error
        yield group
