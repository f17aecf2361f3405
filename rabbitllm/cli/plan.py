"""Show what of a model lives where, and how fast that can be, before anything is loaded.

Reads the config and the headers of the checkpoint, not its weights; of a hub repository nothing
else is fetched. The speeds are the best that this machine's wires allow; they are measured on the
spot, which takes about two seconds.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rabbitllm.cli.options import add_model_arguments, prepare_only

if TYPE_CHECKING:
    import torch

    from rabbitllm.measure.limits import Limits
    from rabbitllm.prepare import Prepared
    from rabbitllm.streaming.plan import Plan, Tier

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
    from rabbitllm.auto import pick_device
    from rabbitllm.cli.tables import table
    from rabbitllm.measure.limits import Limits, measure_limits

    device = pick_device(arguments.device)
    prepared = prepare_only(arguments, device, arguments.attn_implementation)
    plans = list(_plans(prepared, device, arguments))
    print(_model(prepared, device))
    compression: str | None = arguments.compression
    codec = prepared.worth_encoding(compression, plans[0][2])
    print(_disk(prepared, arguments.store, fetched, codec))
    limits = Limits()
    if not arguments.no_measure:
        files = sorted({entry.file for entry in prepared.entries.values()})
        limits = measure_limits(device, prepared.dtype, files if fetched else _cache())
        print(f"Measured here: {limits.describe()}")
    print()
    print(table([_row(*plan, device, limits, compression) for plan in plans]))


def _cache() -> Path:
    """The folder that the hub's cache is in, or will be."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).absolute()
    return next(path for path in (cache, *cache.parents) if path.is_dir())


def _model(prepared: "Prepared", device: "torch.device") -> str:
    from rabbitllm.utils.memory import format_size

    base = prepared.base.nbytes if prepared.base else 0
    return (
        f"{type(prepared.model).__name__}, {str(prepared.dtype).removeprefix('torch.')}: "
        f"{format_size(base + sum(prepared.sizes().values()))} in {len(prepared.stages)} parts and "
        f"{format_size(base)} that is always resident; runs on {device} with "
        f"{prepared.model.active_attention_implementation} attention"
    )


def _disk(prepared: "Prepared", root: str | None, fetched: bool, compression: str | None) -> str:
    """What the checkpoint takes on disk, and what a layer store would need."""
    from rabbitllm.checkpoint.inventory import find_stores
    from rabbitllm.checkpoint.tensors import total_bytes
    from rabbitllm.utils.memory import format_size

    size = format_size(total_bytes(prepared.entries.values()))
    place = f"{size} in {prepared.folder}" if fetched else f"{size} to fetch, {_free(_cache())}"
    if prepared.readable_in_place(compression):
        return f"Disk: {place}; read in place, so no more is needed"
    store = prepared.store(root, compression)
    present = {found.folder: found for found in find_stores(store.folder.parent)}.get(store.folder)
    if present and present.complete:
        return f"Disk: {place}; {format_size(present.nbytes)} in the layer store {store.folder}"
    needed = sum(stage.stored_nbytes for stage in prepared.stored(compression)) + (
        prepared.base.nbytes if prepared.base else 0
    )
    return f"Disk: {place}; {format_size(needed)} for a layer store, {_free(store.folder.parent)}"


def _free(folder: Path) -> str:
    """How much is free there, or where the folder is going to be."""
    from rabbitllm.utils.memory import format_size

    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return f"in {folder} with {format_size(shutil.disk_usage(there).free)} free"


def _plans(
    prepared: "Prepared", device: "torch.device", arguments: argparse.Namespace
) -> Iterator[tuple[str, "Prepared", "Plan"]]:
    """Placements for the asked budget, the least, and parts of the weights, each with its name."""
    import torch

    from rabbitllm.auto import place
    from rabbitllm.streaming.budget import total_budget
    from rabbitllm.streaming.plan import make_plan

    budgets = {"device_memory": arguments.device_memory, "host_memory": arguments.host_memory}
    key = "device_memory" if device.type == "cuda" else "host_memory"
    least = {key: "min"}
    for chosen in (budgets,) if budgets[key] == "min" else (budgets, budgets | least):
        placed = place(prepared, device, max_seq_len=arguments.max_seq_len, **chosen)
        yield str(chosen[key]), *placed
    base = prepared.base.nbytes if prepared.base else 0
    everything = base + sum(prepared.sizes().values())
    cpu = torch.device("cpu")
    host = total_budget(arguments.host_memory, cpu) if device.type == "cuda" else None
    for share in SHARES:
        budget = int(share * everything)
        if budget > prepared.minimum_bytes():
            plan = make_plan(prepared.sizes(), base, budget, host, prepared.gathered())
            yield f"{share:.0%} of the weights", prepared, plan


def _row(
    budget: str,
    prepared: "Prepared",
    plan: "Plan",
    device: "torch.device",
    limits: "Limits",
    compression: str | None,
) -> dict[str, str]:
    """A line of the table: what lies where with a budget, what moves, and how fast that can be."""
    from rabbitllm.utils.memory import format_size

    sizes, cuda = prepared.sizes(), device.type == "cuda"

    def held(tier: "Tier") -> str:
        names = plan.on(tier)
        return f"{format_size(sum(map(sizes.__getitem__, names)))} ({len(names)})" if names else "-"

    on_disk = {stage.name: stage.stored_nbytes for stage in prepared.stored(compression)}
    read = sum(on_disk[name] for name in plan.streamed("disk"))
    copied = sum(sizes[name] for name in plan.streamed("host", "disk")) if cuda else 0
    seconds = limits.seconds(read, copied, computed_bytes(prepared))
    row = {"budget": budget, "resident": held("device")}
    if cuda:
        row["host memory"] = held("host")
    row |= {
        "disk": held("disk"),
        f"weights in {'device' if cuda else 'host'} memory, at most": format_size(
            plan.device_bytes
        ),
        "moved a token": format_size(max(read, copied)),
        "tokens/s, at best": f"{1 / seconds:.2f}" if seconds else "?",
    }
    return row


def computed_bytes(prepared: "Prepared") -> float:
    """Bytes of weights that one token is multiplied with: of experts, only those it is sent to."""
    config = prepared.model.config.get_text_config().to_dict()
    active = config.get("num_experts_per_tok")
    total, gathered = float(prepared.base.nbytes if prepared.base else 0), prepared.gathered()
    for stage in prepared.stages:
        for weight in stage.weights:
            share = 1.0
            if active and ".experts." in weight.name:
                share = min(1.0, active / weight.shape[0])
            total += 0.0 if stage.name in gathered else share * weight.nbytes
    return total
