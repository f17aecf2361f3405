"""Show what of a model lives where, and how fast that can be, before anything is loaded.

Reads the config and the headers of the checkpoint, not its weights; of a hub repository nothing
else is fetched. The speeds are the best that this machine's wires allow; they are measured on the
spot, which takes about two seconds. Of several GPUs, also what fewer of them would do.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rabbitllm.cli.options import add_model_arguments, budgets_from, prepare_only, sharing_from
from rabbitllm.errors import BudgetError

if TYPE_CHECKING:
    import torch

    from rabbitllm.checkpoint.location import Location
    from rabbitllm.measure.limits import Limits
    from rabbitllm.streaming.plan import Plan
    from rabbitllm.streaming.several import Sharing
    from rabbitllm.streaming.staged import StagedModel

EXAMPLE = "  rabbitllm plan Qwen/Qwen2.5-72B-Instruct --device-memory 16GiB --host-memory 64GiB"
PROMPT = 512
"""Tokens of a prompt that is spoken of."""
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
    from rabbitllm.streaming.picking import pick_devices

    devices = pick_devices(arguments.device)
    prepared = prepare_only(arguments, devices[0], arguments.attn_implementation)
    location = prepared.location
    sharing = sharing_from(arguments, devices, location)
    if sharing and arguments.no_measure:
        raise ValueError("--host-compute shares out by measured rates: leave --no-measure out.")
    encoded = location.encoded(arguments.compression, arguments.store)
    staged = prepared.staged.stored(encoded)
    plans = list(_plans(staged, devices, arguments, sharing))
    used = list(plans[0][2].device_bytes)
    print(_model(staged, plans[0][2]))
    if experts := _experts(staged):
        print(f"Experts: {experts}")
    if prompts := _prompts(*plans[0][1:]):
        print(f"Prompts: {prompts}")
    read_again = bool(plans[0][2].moving("disk", "host"))
    codec = location.worth_encoding(arguments.compression, read_again)
    print(_disk(location, staged, arguments.store, fetched, codec))
    if slow := _decoding(location, used[0]):
        print(slow)
    limits = Limits()
    if not arguments.no_measure:
        files = sorted({entry.file for entry in location.entries.values()})
        limits = measure_limits(used, staged.dtype, files if fetched else _cache())
        print(f"Measured here: {limits.describe()}")
    print()
    scaled = ((*plan, limits.of(len(plan[2].device_bytes), len(used))) for plan in plans)
    print(table([_row(*plan, sharing is not None) for plan in scaled]))


def _cache() -> Path:
    """The folder that the hub's cache is in, or will be."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).absolute()
    return next(path for path in (cache, *cache.parents) if path.is_dir())


def _model(staged: "StagedModel", plan: "Plan") -> str:
    from rabbitllm.utils.memory import format_size

    streaming = sum(not stage.pinned for stage in staged.stages)
    return (
        f"{type(staged.model).__name__}, {str(staged.dtype).removeprefix('torch.')}: "
        f"{format_size(staged.nbytes)} in {streaming} parts and "
        f"{format_size(staged.pinned_nbytes)} that is always resident; runs on "
        f"{', '.join(map(str, plan.device_bytes))} with "
        f"{staged.model.config._attn_implementation} attention"
    )


def _experts(staged: "StagedModel") -> str:
    """How a mixture's experts come; nothing where there are none."""
    by_rows, whole = staged.experts_by_rows, staged.experts_whole
    said = [f"those of {len(by_rows)} layers come as tokens are sent to them"] if by_rows else []
    if whole:
        kinds = sorted({type(staged.structure.modules[path]).__name__ for path in whole})
        said.append(
            f"those of {len(whole)} layers come whole, for their forward is not told which it "
            f"needs, or none can be read alone ({', '.join(kinds)})"
        )
    return "; ".join(said)


def _prompts(staged: "StagedModel", plan: "Plan") -> str:
    """What of a mixture's experts the CPU computes in prompts; nothing where there are none."""
    from rabbitllm.streaming.pace import RowBytes
    from rabbitllm.streaming.row_sharing import rows_by_link

    first = next((stage for stage in staged.stages if stage.name in plan.shared), None)
    if first is None or plan.rates is None:
        return ""
    routes = staged.moved_sizes[first.name] // first.stored_row_nbytes
    tokens = min(PROMPT, int(plan.rates.most * first.rows / routes))
    row = RowBytes(first.row_nbytes, first.stored_row_nbytes)
    brought = rows_by_link(first.rows, tokens * routes / first.rows, row, plan.rates)
    share = 1 - brought / first.rows
    return f"experts on both roads, {share:.0%} by the CPU at {tokens} tokens" if share else ""


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
    guessed = "; until it is made, what compression saves is an estimate" if compression else ""
    free = _free(store.folder.parent)
    return f"Disk: {place}; {format_size(needed)} for a layer store, {free}{guessed}"


def _decoding(location: "Location", device: "torch.device") -> str:
    """What decodes a quantised checkpoint more slowly than need be; empty if nothing does."""
    from rabbitllm.checkpoint.codecs.compiled import compiled_loops
    from rabbitllm.checkpoint.codecs.nested import Nested
    from rabbitllm.checkpoint.codecs.scaled import Scaled
    from rabbitllm.checkpoint.codecs.words import Words
    from rabbitllm.streaming.plan import own_memory

    kinds = (Scaled, Words, Nested)
    quantised = any(isinstance(entry.codec, kinds) for entry in location.entries.values())
    if own_memory(device) != "host" or not quantised or compiled_loops():
        return ""
    return "Decoding: by numpy; 1.5 to 5 times as fast with the extra `numba` installed"


def _free(folder: Path) -> str:
    """How much is free there, or where the folder is going to be."""
    from rabbitllm.utils.memory import format_size

    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return f"in {folder} with {format_size(shutil.disk_usage(there).free)} free"


def _plans(
    staged: "StagedModel",
    devices: "tuple[torch.device, ...]",
    arguments: argparse.Namespace,
    sharing: "Sharing | None" = None,
) -> Iterator[tuple[str, "StagedModel", "Plan"]]:
    """Placements for the asked budget, the least, and others to choose from, each with its name.

    Where one device computes, these are budgets of parts of the weights; where several do, fewer of
    them.

    Args:
        staged: the model.
        devices: that may compute.
        arguments: the command's.
        sharing: see `rabbitllm.streaming.several.place_on`.
    """
    from rabbitllm.streaming.plan import own_memory
    from rabbitllm.streaming.planning import make_plan
    from rabbitllm.streaming.several import place_on
    from rabbitllm.streaming.sharing import share_out

    budgets = budgets_from(arguments, devices)
    on_host = own_memory(devices[0]) == "host"
    name = str(arguments.host_memory if on_host else arguments.device_memory)
    placed = place_on(staged, budgets, arguments.device == "auto", sharing)
    yield name, *placed
    used = list(placed[1].device_bytes)
    for count in range(len(used) - 1, 0, -1):
        fewer = replace(budgets, totals={device: budgets.totals[device] for device in used[:count]})
        with suppress(BudgetError):
            yield f"{name} on {count} of {len(used)}", *place_on(staged, fewer, sharing=sharing)
    if name != "min":
        least = replace(budgets, totals=dict.fromkeys(used, "min"))
        yield "min", *place_on(staged, least, sharing=sharing)

    def planned(
        model: "StagedModel", planner: "Callable[..., Plan]", budget: int
    ) -> "tuple[StagedModel, Plan]":
        return model, planner(model.stages, used[0], budget, None if on_host else budgets.host)

    for share in SHARES if len(used) == 1 else ():
        budget = int(share * staged.nbytes)
        if budget > staged.minimum_bytes:
            placed = planned(staged, make_plan, budget)
            if sharing:
                again = partial(planned, budget=budget)
                placed = share_out(staged, used[0], placed, again, *sharing)
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
    from rabbitllm.measure.prediction import predict
    from rabbitllm.streaming.plan import own_memory
    from rabbitllm.utils.memory import format_size

    sizes = staged.sizes
    on_host = own_memory(next(iter(plan.device_bytes))) == "host"

    def held(names: list[str]) -> str:
        return f"{format_size(sum(map(sizes.__getitem__, names)))} ({len(names)})" if names else "-"

    moved, hosted = staged.moved_sizes, plan.on_host()
    expected = predict(staged, plan, limits)
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
            max(plan.device_bytes.values())
        ),
        "moved a token": format_size(expected.moved),
        "tokens/s, at best": f"{1 / expected.seconds:.2f}" if expected.seconds else "?",
    }
    return row
