"""Show what of a model lives where, and how fast that can be, before anything is loaded.

Reads the config and the headers of the checkpoint, not its weights; of a hub repository nothing
else is fetched. The speeds are the best that this machine's wires allow; they are measured on the
spot, which takes about two seconds.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rabbitllm.cli.options import add_model_arguments, prepare_only

if TYPE_CHECKING:
    import torch

    from rabbitllm.checkpoint.location import Location
    from rabbitllm.measure.limits import Limits
    from rabbitllm.streaming.plan import Plan
    from rabbitllm.streaming.staged import StagedModel

EXAMPLE = "  rabbitllm plan Qwen/Qwen2.5-72B-Instruct --device-memory 16GiB --host-memory 64GiB"
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Parts of the weights that are tried as budgets, besides the asked one and the least."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's arguments."""
    add_model_arguments(parser)
    parser.add_argument(
        "--no-measure", action="store_true", help="measure nothing, and expect no speed"
    )


def main(arguments: argparse.Namespace) -> int:
    """Runs the sub-command; returns its exit status."""
    from rabbitllm.checkpoint.headers import fetch_headers
    from rabbitllm.checkpoint.hub import local_folder

    if local_folder(arguments.model):
        _show(arguments, fetched=True)
    else:
        with tempfile.TemporaryDirectory(prefix="rabbitllm-") as folder:
            fetch_headers(arguments.model, None, arguments.trust_remote_code, Path(folder))
            arguments.model = folder
            _show(arguments, fetched=False)
    return 0


def _show(arguments: argparse.Namespace, fetched: bool) -> None:
    """Prints the plan of a folder, of which the weights may be on the hub still."""
    from rabbitllm.cli.tables import table
    from rabbitllm.measure.limits import Limits, measure_limits
    from rabbitllm.streaming.placement import pick_device
    from rabbitllm.streaming.sharing import accept_host_compute

    device = pick_device(arguments.device)
    shared = accept_host_compute(arguments.host_compute, device)
    if shared and arguments.no_measure:
        raise ValueError("--host-compute shares out by measured rates: leave --no-measure out.")
    prepared = prepare_only(arguments, device, arguments.attn_implementation)
    location = prepared.location
    staged = prepared.staged.stored(location.encoded(arguments.compression))
    plans = list(_plans(staged, device, arguments, shared, location.plain_in_place()))
    print(_model(staged, device))
    read_again = bool(plans[0][2].moving("disk", "host"))
    codec = location.worth_encoding(arguments.compression, read_again)
    print(_disk(location, staged, arguments.store, fetched, codec))
    limits = Limits()
    if not arguments.no_measure:
        files = sorted({entry.file for entry in location.entries.values()})
        limits = measure_limits(device, staged.dtype, files if fetched else _cache())
        print(f"Measured here: {limits.describe()}")
    print()
    print(table([_row(*plan, limits, shared) for plan in plans]))


def _cache() -> Path:
    """The folder that the hub's cache is in, or will be."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).absolute()
    return next(path for path in (cache, *cache.parents) if path.is_dir())


def _model(staged: "StagedModel", device: "torch.device") -> str:
    from rabbitllm.utils.memory import format_size

    streaming = sum(not stage.pinned for stage in staged.stages)
    return (
        f"{type(staged.model).__name__}, {str(staged.dtype).removeprefix('torch.')}: "
        f"{format_size(staged.nbytes)} in {streaming} parts and "
        f"{format_size(staged.pinned_nbytes)} that is always resident; runs on {device} with "
        f"{staged.model.config._attn_implementation} attention"
    )


def _disk(
    location: "Location",
    staged: "StagedModel",
    root: str | None,
    fetched: bool,
    compression: str | None,
) -> str:
    """What the checkpoint takes on disk, and what a layer store would need."""
    from rabbitllm.checkpoint.inventory import find_stores
    from rabbitllm.checkpoint.tensors import total_bytes
    from rabbitllm.utils.memory import format_size

    size = format_size(total_bytes(location.entries.values()))
    place = f"{size} in {location.folder}" if fetched else f"{size} to fetch, {_free(_cache())}"
    if location.readable_in_place(compression):
        return f"Disk: {place}; read in place, so no more is needed"
    store = location.store(root, compression)
    present = {found.folder: found for found in find_stores(store.folder.parent)}.get(store.folder)
    if present and present.complete:
        return f"Disk: {place}; {format_size(present.nbytes)} in the layer store {store.folder}"
    needed = sum(stage.stored_nbytes for stage in staged.stages)
    return f"Disk: {place}; {format_size(needed)} for a layer store, {_free(store.folder.parent)}"


def _free(folder: Path) -> str:
    """How much is free there, or where the folder is going to be."""
    from rabbitllm.utils.memory import format_size

    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return f"in {folder} with {format_size(shutil.disk_usage(there).free)} free"


def _plans(
    staged: "StagedModel",
    device: "torch.device",
    arguments: argparse.Namespace,
    shared: bool,
    plain: Collection[str] = (),
) -> Iterator[tuple[str, "StagedModel", "Plan"]]:
    """Placements for the asked budget, the least, and parts of the weights, each with its name.

    Args:
        staged: the model.
        device: that computes.
        arguments: the command's.
        shared: whether the CPU may compute for another device.
        plain: the weights that lie on disk as they compute.
    """
    from rabbitllm.measure.roads import roads_of
    from rabbitllm.streaming.placement import HOST, total_budget
    from rabbitllm.streaming.plan import own_memory
    from rabbitllm.streaming.planning import make_plan
    from rabbitllm.streaming.sharing import place_as_asked, share_out

    on_host = own_memory(device) == "host"
    budgets = {"device_memory": arguments.device_memory, "host_memory": arguments.host_memory}
    key = "host_memory" if on_host else "device_memory"
    least = {key: "min"}
    for chosen in (budgets,) if budgets[key] == "min" else (budgets, budgets | least):
        placed = place_as_asked(
            staged,
            device,
            arguments.max_seq_len,
            shared,
            measure=roads_of,
            plain=plain,
            **chosen,
        )
        yield str(chosen[key]), *placed
    host = None if on_host else total_budget(arguments.host_memory, HOST)

    def planned(
        model: "StagedModel", planner: Callable[..., "Plan"], budget: int
    ) -> "tuple[StagedModel, Plan]":
        return model, planner(model.stages, device, budget, host)

    for share in SHARES:
        budget = int(share * staged.nbytes)
        if budget > staged.minimum_bytes:
            placed = planned(staged, make_plan, budget)
            if shared:
                again = partial(planned, budget=budget)
                placed = share_out(staged, device, placed, again, roads_of, plain)
            yield f"{share:.0%} of the weights", *placed


def _row(
    budget: str,
    staged: "StagedModel",
    plan: "Plan",
    limits: "Limits",
    shared: bool,
) -> dict[str, str]:
    """A line of the table: what lies where with a budget, what moves, and how fast that can be.

    Args:
        budget: what it is called.
        staged: the model as it is placed.
        plan: where.
        limits: of the machine.
        shared: whether the CPU may compute for another device.
    """
    from rabbitllm.measure.roads import roads_of
    from rabbitllm.streaming.plan import own_memory
    from rabbitllm.streaming.sharing import seconds_of
    from rabbitllm.utils.memory import format_size

    sizes = staged.sizes
    (device,) = plan.device_bytes
    on_host = own_memory(device) == "host"

    def held(names: list[str]) -> str:
        return f"{format_size(sum(map(sizes.__getitem__, names)))} ({len(names)})" if names else "-"

    moved, hosted = staged.moved_sizes, plan.on_host()
    read = sum(moved[name] for name in plan.moving("disk"))
    copying = set() if on_host else set(plan.moving("host", "disk")).difference(hosted)
    copied = sum(moved[name] for name in copying)
    seconds = limits.seconds(read, copied, staged.computed_bytes)
    if hosted:
        seconds = max(seconds, seconds_of(plan, staged, roads_of(device, staged.dtype)))
    pinned = {stage.name for stage in staged.stages if stage.pinned}
    row = {
        "budget": budget,
        "resident": held([name for name in plan.resident() if name not in pinned]),
    }
    if encoded := plan.away("encoded"):
        size = format_size(sum(moved[name] for name in encoded))
        row["resident"] += f", {size} ({len(encoded)}) as stored"
    if not on_host:
        row["host memory"] = held(plan.away("host"))
    if shared:
        row["of it the CPU computes"] = held(hosted)
    row |= {
        "disk": held(plan.away("disk")),
        f"weights in {'host' if on_host else 'device'} memory, at most": format_size(
            plan.device_bytes[device]
        ),
        "moved a token": format_size(max(read, copied)),
        "tokens/s, at best": f"{1 / seconds:.2f}" if seconds else "?",
    }
    return row
