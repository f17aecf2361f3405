"""`AutoModel.from_pretrained`: from a checkpoint to a stock model whose layers stream."""

import os
from functools import partial

import torch

from rabbitllm.checkpoint.config import load_generation_config
from rabbitllm.deprecated import accept_arguments, accept_compression
from rabbitllm.model import StreamedModel
from rabbitllm.prepare import Prepared, prepare
from rabbitllm.streaming.budget import (
    DEFAULT_SEQ_LEN,
    free_bytes,
    total_budget,
    weights_budget,
)
from rabbitllm.streaming.ceiling import Ceiling
from rabbitllm.streaming.engine import stream
from rabbitllm.streaming.pipeline import Options
from rabbitllm.streaming.placeholder import put_placeholders
from rabbitllm.streaming.plan import Budget, Plan, make_plan
from rabbitllm.streaming.room import Room
from rabbitllm.streaming.working import (
    CUDA_CONTEXT,
    Work,
    read_geometry,
    taken_bytes,
    working_bytes,
)
from rabbitllm.utils.glibc import map_large_allocations


class AutoModel:
    """Loads any causal language model that transformers knows, as a model whose layers stream."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        attn_implementation: str = "auto",
        device_memory: int | str = "auto",
        host_memory: int | str = "auto",
        token: str | None = None,
        hf_token: str | None = None,
        layer_shards_saving_path: str | os.PathLike[str] | None = None,
        delete_original: bool = False,
        trust_remote_code: bool = False,
        show_layer_progress: bool | None = None,
        profiling_mode: bool = False,
        max_seq_len: int | None = None,
        prefetching: bool = True,
        compression: str | None = None,
        **older: object,
    ) -> StreamedModel:
        """Loads a checkpoint as a model of its stock class, streaming what does not fit.

        Args:
            pretrained_model_name_or_path: a folder, or a repository on the Hugging Face hub.
            device: "cuda:0", "cpu"; "auto" is CUDA when there is one.
            dtype: of the weights; "auto" is the checkpoint's own.
            attn_implementation: a backend's name in transformers; "auto" is the fastest that works
                here.
            device_memory: budget for weights on a CUDA device: bytes, "4GiB", "min" for the least
                that works, or "auto" for what is free less room for the cache and activations.
                Ignored on CPU, where there is one memory.
            host_memory: budget for weights in host memory, in the same notation.
            token: for gated and private repositories; HF_TOKEN is used otherwise.
            hf_token: the older name of `token`.
            layer_shards_saving_path: folder for the layer store, which only checkpoints that cannot
                be read in place need.
            delete_original: remove the checkpoint's own shards once the layer store holds
                everything.
            trust_remote_code: run the checkpoint's own Python code where it needs some. Off by
                default.
            show_layer_progress: a progress bar over the layers of each forward, on a terminal; None
                shows it when layers come from disk.
            profiling_mode: time every layer, in `streaming_stats()["stages"]`.
            max_seq_len: tokens that the automatic budgets keep room for in the cache (4096).
            prefetching: load the next layer while one computes.
            compression: "lossless" reads bfloat16 layers from disk in three quarters of their
                bytes, and computes with the same bits. They are encoded once, into a layer store;
                without layers on disk a checkpoint that can be read in place needs none.
            older: arguments of rabbitllm 1.1 that do nothing any more; each one warns.

        Raises:
            CheckpointError: the checkpoint is absent, incomplete, damaged or of an unknown
                architecture.
            BudgetError: a budget is too small; the message states the minimum.
            ValueError: an argument's value is not understood.
            TypeError: there is no such argument.
        """
        codec = accept_compression(compression)
        accept_arguments(older)
        target = pick_device(device)
        prepared = prepare(
            pretrained_model_name_or_path,
            token or hf_token,
            target,
            dtype,
            attn_implementation,
            trust_remote_code,
        )
        model, folder = prepared.model, prepared.folder
        generation = load_generation_config(folder)
        asked = {"device_memory": device_memory, "host_memory": host_memory}
        setting = "host_memory" if target.type == "cpu" else "device_memory"
        total = total_budget(asked[setting], target)
        placed, plan = place(prepared, target, max_seq_len=max_seq_len, **asked | {setting: total})
        room = make_room(placed, plan, setting, asked[setting], total, target)
        located = prepared.locate(
            layer_shards_saving_path, delete_original, prepared.worth_encoding(codec, plan)
        )
        progress = show_layer_progress
        if progress is None:
            progress = bool(plan.streamed("disk"))
        options = Options(prefetching, progress, profiling_mode, room.admit)
        put_placeholders(model, target)
        pipeline = stream(model, placed.base, placed.stages, located, plan, target, options)
        if room.ceiling:
            room.ceiling.watch(stage.modules[0] for stage in placed.stages)
        if generation is not None:
            model.generation_config = generation
        model.name_or_path = os.fspath(pretrained_model_name_or_path)
        model.attach(plan, pipeline, room, folder, target, trust_remote_code)
        return model


def pick_device(device: str | torch.device) -> torch.device:
    """The device that an argument means: "auto" is CUDA when there is one.

    Raises:
        ValueError: neither CPU nor CUDA, or not there.
    """
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device={device!r} is not understood. Use 'auto', 'cpu' or 'cuda:0'."
        ) from error
    if target.type not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r} is not supported. Use 'auto', 'cpu' or 'cuda:0'.")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={device!r} is not there: {torch.cuda.device_count()} CUDA devices. Use "
            "'auto' or 'cpu'."
        )
    return torch.device("cuda", target.index or 0) if target.type == "cuda" else target


def place(
    prepared: Prepared,
    device: torch.device,
    device_memory: int | str,
    host_memory: int | str,
    max_seq_len: int | None,
) -> tuple[Prepared, Plan]:
    """Places the stages; blocks split as long as two do not fit beside what computing takes.

    On CPU they also split as long as that makes the slots smaller: what streams comes from disk,
    so room for one more resident layer is worth more than the hooks of smaller stages cost.

    Args:
        prepared: the model; it comes back with smaller stages if blocks had to split.
        device: where it runs.
        device_memory: budget on a CUDA device, as `AutoModel.from_pretrained` takes it.
        host_memory: budget in host memory.
        max_seq_len: tokens that automatic budgets keep room for.

    Raises:
        BudgetError: a budget is too small; the message states the minimum.
        ValueError: a budget is no size.
    """
    host = torch.device("cpu")
    total = total_budget(host_memory if device.type == "cpu" else device_memory, device)
    work = Work(1, max_seq_len or DEFAULT_SEQ_LEN)
    working = working_bytes(read_geometry(prepared.model.config), prepared.dtype, device, work)
    for_host = None if device.type == "cpu" else total_budget(host_memory, host)

    def fits(candidate: Prepared) -> bool:
        return total == "min" or candidate.minimum_bytes() + working <= total

    def plan(candidate: Prepared) -> Plan:
        for_weights = weights_budget(total, candidate.minimum_bytes(), working)
        base = candidate.base.nbytes if candidate.base else 0
        return make_plan(candidate.sizes(), base, for_weights, for_host, candidate.gathered())

    while not fits(prepared) and (smaller := prepared.with_largest_split()):
        prepared = smaller
    best = plan(prepared)
    while device.type == "cpu" and total != "min" and best.slots:
        smaller = prepared.with_largest_split()
        # Parts that are always resident can make the least larger.
        if smaller is None or smaller.minimum_bytes() > prepared.minimum_bytes():
            break
        finer = plan(smaller)
        if sum(finer.slot_sizes) >= sum(best.slot_sizes):
            break
        prepared, best = smaller, finer
    return prepared, best


def make_room(
    placed: Prepared,
    plan: Plan,
    setting: str,
    asked: int | str,
    total: Budget,
    device: torch.device,
) -> Room:
    """What forwards may take beside the weights as they were placed.

    Args:
        placed: the model, as `place` gave it back.
        plan: where its weights are.
        setting: the argument that budgets the device that computes.
        asked: its value.
        total: the bytes that it means, or "min".
        device: where the model runs.
    """
    geometry, dtype = read_geometry(placed.model.config), placed.dtype
    sized = asked not in ("auto", "min")
    ceiling = None
    if sized and total != "min" and device.type == "cuda":
        ceiling = Ceiling(device, total - CUDA_CONTEXT, plan.device_bytes, geometry, dtype)
    return Room(
        setting,
        0 if total == "min" else total - plan.device_bytes,
        placed.minimum_bytes(),
        lambda work: working_bytes(geometry, dtype, device, work),
        lambda work: taken_bytes(geometry, dtype, device, work),
        None if sized else partial(free_bytes, device),
        ceiling,
        map_large_allocations if device.type == "cpu" else lambda: None,
    )
