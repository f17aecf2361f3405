"""`AutoModel.from_pretrained`: from a checkpoint to a stock model whose layers stream."""

import os

import torch

from rabbitllm.checkpoint.config import load_generation_config
from rabbitllm.deprecated import accept_arguments, accept_compression
from rabbitllm.model import StreamedModel
from rabbitllm.prepare import prepare
from rabbitllm.streaming.engine import stream
from rabbitllm.streaming.pipeline import Options
from rabbitllm.streaming.placement import make_room, pick_device, place, total_budget
from rabbitllm.streaming.plan import own_memory
from rabbitllm.utils.memory import check_budget


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
            device_memory: budget for weights on a CUDA device: bytes, "4GiB", "50%" of its memory,
                "min" for the least that works, or "auto" for what is free less room for the cache
                and activations. Ignored on CPU, where there is one memory.
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
        for budget in (device_memory, host_memory):
            check_budget(budget)
        target = pick_device(device)
        prepared = prepare(
            pretrained_model_name_or_path,
            token or hf_token,
            target,
            dtype,
            attn_implementation,
            trust_remote_code,
        )
        model, location = prepared.model, prepared.location
        generation = load_generation_config(location.folder)
        asked = {"device_memory": device_memory, "host_memory": host_memory}
        setting = "host_memory" if own_memory(target) == "host" else "device_memory"
        total = total_budget(asked[setting], target)
        staged, plan = place(
            prepared.staged, target, max_seq_len=max_seq_len, **asked | {setting: total}
        )
        room = make_room(staged, plan, setting, asked[setting], total, target)
        read_again = bool(plan.streamed("disk"))
        located = location.locate(
            layer_shards_saving_path, delete_original, location.worth_encoding(codec, read_again)
        )
        progress = read_again if show_layer_progress is None else show_layer_progress
        options = Options(prefetching, progress, profiling_mode, room.admit)
        pipeline = stream(model, staged.stages, located, plan, target, options)
        if room.ceiling:
            blocks = (stage for stage in staged.stages if not stage.pinned)
            room.ceiling.watch(stage.modules[0] for stage in blocks)
        if generation is not None:
            model.generation_config = generation
        model.name_or_path = os.fspath(pretrained_model_name_or_path)
        model.attach(plan, pipeline, room, location.folder, target, trust_remote_code)
        return model
