"""`AutoModel.from_pretrained`: from a checkpoint to a stock model whose layers stream."""

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NoReturn

import torch
from transformers import GenerationConfig, PretrainedConfig

from rabbitllm.adapters import find_adapter
from rabbitllm.attention import Backend
from rabbitllm.checkpoint.config import load_generation_config
from rabbitllm.checkpoint.hub import Download
from rabbitllm.checkpoint.index import Asked
from rabbitllm.deprecated import accept_arguments, accept_compression
from rabbitllm.measure.roads import roads_of
from rabbitllm.model import StreamedModel
from rabbitllm.prepare import prepare
from rabbitllm.stock_arguments import (
    accept_stock,
    budgets_of,
    check_types,
    pick_one,
    targets_of,
)
from rabbitllm.streaming.engine import stream
from rabbitllm.streaming.picking import HOST, DeviceLike
from rabbitllm.streaming.pipeline import Options
from rabbitllm.streaming.placement import make_rooms, total_budget
from rabbitllm.streaming.several import Budgets, Sharing, place_on
from rabbitllm.streaming.sharing import accept_host_compute, plain_entries
from rabbitllm.utils.memory import check_budget


class AutoModel:
    """Loads any causal language model that transformers knows, as a model whose layers stream."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: object,
        device: DeviceLike = "auto",
        dtype: str | torch.dtype | None = "auto",
        attn_implementation: Backend | None = "auto",
        device_memory: int | str | Sequence[int | str] = "auto",
        host_memory: int | str = "auto",
        token: str | bool | None = None,
        hf_token: str | None = None,
        layer_shards_saving_path: str | os.PathLike[str] | None = None,
        delete_original: bool = False,
        trust_remote_code: bool = False,
        show_layer_progress: bool | None = None,
        profiling_mode: bool = False,
        max_seq_len: int | None = None,
        prefetching: bool = True,
        compression: str | None = None,
        host_compute: bool | str = False,
        config: PretrainedConfig | str | os.PathLike[str] | None = None,
        generation_config: GenerationConfig | None = None,
        revision: str | None = None,
        subfolder: str = "",
        variant: str | None = None,
        use_safetensors: bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        torch_dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        experts_implementation: str | None = None,
        output_loading_info: bool = False,
        **others: Any,
    ) -> StreamedModel:
        """Loads a checkpoint as a model of its stock class, streaming what does not fit.

        Args:
            pretrained_model_name_or_path: a folder, or a repository on the Hugging Face hub. With
                peft, that of an adapter loads with the model that it is for.
            device: "cuda:0", "cpu"; ["cuda:0", "cuda:1"] or "cuda:0,cuda:1" for several GPUs, which
                take turns, block by block, so that all their links bring weights at once. "auto" is
                torch's default device where one was set; or else all GPUs that are visible, but the
                first alone where the whole model fits on it; or the CPU.
            dtype: of the weights; "auto" is the checkpoint's own.
            attn_implementation: a backend's name in transformers, or a dict of them by parts of a
                composite config; "auto" is the fastest that works here.
            device_memory: budget on each CUDA device, for weights, cache and activations: bytes,
                "4GiB", "50%" of its memory, "min" for the least that works, or "auto" for what is
                free; or a list of such, one for each. Ignored on CPU, where there is one memory.
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
            compression: has layers travel in fewer bytes, from disk and to a GPU: "lossless"
                bfloat16 in three quarters and float32 in seven eighths, with the same bits; "8bit"
                and "4bit" in half and a quarter, with nearly the same weights and with others. They
                are encoded once, into a layer store; where no layer moves, a checkpoint that can be
                read in place needs none.
            host_compute: "auto" has the CPU compute MLPs where they wait in host memory, while the
                link brings other layers to the GPU, as many as make passes of few tokens quickest.
                Of a mixture's experts it computes some in passes that ask for most: prompts.
                The CPU sums in another order than the GPU: answers may differ where two tokens are
                nearly as likely. How fast both are is measured once, and kept.
            config: in place of the checkpoint's own: a config, or the folder or repository of one.
            generation_config: in place of the checkpoint's own.
            revision: branch, tag or commit of a repository; None is the main branch.
            subfolder: where in the folder or repository the model lies.
            variant: of the weight files, such as "fp16" for model.fp16.safetensors.
            use_safetensors: True takes no .bin files, False takes nothing else; None takes
                safetensors where there are some.
            cache_dir: where huggingface_hub keeps snapshots, if not in its usual place.
            force_download: fetch a repository's files anew.
            local_files_only: take a repository from the cache, and ask no hub.
            torch_dtype: the older name of `dtype`.
            device_map: stock's argument for a device: one as in `device`, its index, "auto", or a
                dict that maps everything to one.
            max_memory: stock's argument for budgets: that of a GPU's index is its `device_memory`,
                that of "cpu" is `host_memory`.
            experts_implementation: what computes a mixture's experts, as in stock.
            output_loading_info: return the model and stock's dict on keys, as a tuple.
            model_args: refused: no model takes any.
            others: attributes of the config, which they replace, such as `use_cache=False`;
                arguments of stock's `from_pretrained` that ask for nothing; and arguments of
                rabbitllm 1.1, which warn.

        Raises:
            CheckpointError: the checkpoint is absent, incomplete, damaged or of an unknown
                architecture.
            BudgetError: a budget is too small; the message states the minimum.
            ValueError: an argument's value is not understood, or it asks for what streaming has no
                place for; the message says what to do instead.
            TypeError: there is no such argument, or not of that type.
        """
        if model_args:
            raise TypeError(f"{model_args[0]!r} has no name. Pass all but the model by keyword.")
        check_types(
            {"config": config, "generation_config": generation_config, "max_memory": max_memory}
        )
        codec = accept_compression(compression)
        changes = accept_arguments(accept_stock(others))
        if experts_implementation is not None:
            changes["experts_implementation"] = experts_implementation
        targets = targets_of(device, device_map)
        target = targets.devices[0]
        asked, host = budgets_of(device_memory, host_memory, max_memory, targets.devices)
        for budget in (*asked.values(), host):
            check_budget(budget)
        shared = accept_host_compute(host_compute, target)
        token = hf_token if token is None else token
        download = Download(revision, cache_dir, force_download, local_files_only)
        adapter = find_adapter(pretrained_model_name_or_path, subfolder, token, download)
        with torch.device("cpu"):  # buffers are made there, whatever torch's default device is
            prepared = prepare(
                adapter.base if adapter else pretrained_model_name_or_path,
                token,
                target,
                pick_one({"dtype": dtype, "torch_dtype": torch_dtype}),
                attn_implementation or "auto",
                trust_remote_code,
                download=download,
                subfolder=adapter.subfolder if adapter else subfolder,
                asked=Asked(variant, use_safetensors),
                given_config=config,
                changes=changes,
            )
        model, location = prepared.model, prepared.location
        generation = deepcopy(generation_config) or load_generation_config(location.folder)
        totals = {each: total_budget(budget, each) for each, budget in asked.items()}
        encoded = location.encoded(codec, layer_shards_saving_path)
        expected = prepared.staged.stored(encoded)
        budgets = Budgets(totals, total_budget(host, HOST), max_seq_len)
        plain = {} if delete_original else location.plain_in_place()
        sharing = Sharing(roads_of, plain) if shared else None
        staged, plan = place_on(expected, budgets, targets.fewest, sharing)
        codec = location.worth_encoding(codec, bool(plan.moving("disk", "host")))
        located = location.locate(layer_shards_saving_path, delete_original, codec)
        encoded = {name: entry for name, entry in located.items() if not entry.plain}
        stored = prepared.staged.stored(encoded)
        if stored.on_disk != expected.on_disk:  # how far a weight is compressed, its values decide
            staged, plan = place_on(stored, budgets, targets.fewest, sharing)
        rooms = make_rooms(staged, plan, asked, totals)
        read_again = bool(plan.moving("disk"))
        located = dict(located) | plain_entries(staged, plan, plain)
        progress = read_again if show_layer_progress is None else show_layer_progress
        options = Options(prefetching, progress, profiling_mode, rooms.admit)
        pipeline = stream(model, staged.stages, located, plan, target, options)
        rooms.watch(staged, plan, pipeline.join)
        if generation is not None:
            model.generation_config = generation
        model.name_or_path = model.config.name_or_path = os.fspath(pretrained_model_name_or_path)
        sizes = staged.moved_sizes
        model.attach(plan, pipeline, rooms, location.folder, target, trust_remote_code, sizes)
        if adapter:
            model.load_adapter(str(adapter.folder))
        if output_loading_info:
            # Whatever else a load may find is an error here.
            info = {
                "missing_keys": set[str](),
                "unexpected_keys": prepared.unexpected(),
                "mismatched_keys": set[tuple[str, tuple[int, ...], tuple[int, ...]]](),
                "error_msgs": list[str](),
            }
            return model, info  # type: ignore[return-value]  # annotated as in stock
        return model

    @classmethod
    def from_config(cls, config: PretrainedConfig, **options: object) -> NoReturn:
        """Refuses: a config has no weights, and what streams are weights on disk.

        Raises:
            RuntimeError: always; the message says what to do instead.
        """
        raise RuntimeError(
            f"A {type(config).__name__} alone has no weights to stream: a model made of it would "
            "have random ones. transformers.AutoModelForCausalLM.from_config makes such a model, "
            "and AutoModel.from_pretrained(folder, config=config) streams a checkpoint's weights."
        )
