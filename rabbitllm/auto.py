"""`AutoModel.from_pretrained`: from a checkpoint to a stock transformers model whose layers stream."""

import logging
import os
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from rabbitllm.attention import build_with_attention
from rabbitllm.checkpoint.config import load_config, pick_dtype, repair_head_dim, stock_class
from rabbitllm.checkpoint.convert import Recipe, check_complete, check_shapes, dtypes_of, recipes_for, resolve_ties
from rabbitllm.checkpoint.source import TensorEntry, read_index, resolve
from rabbitllm.checkpoint.store import LayerStore, default_root, moved_entries, remove_originals
from rabbitllm.families import family_of
from rabbitllm.model import StreamedModel, streamed_class
from rabbitllm.streaming.budget import cache_bytes, device_budget, host_budget
from rabbitllm.streaming.engine import Options, stream
from rabbitllm.streaming.plan import Plan, make_plan
from rabbitllm.streaming.reader import Reader
from rabbitllm.streaming.stages import Stage, find_stages

logger = logging.getLogger(__name__)


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
    ) -> StreamedModel:
        """Loads a checkpoint as a model of its stock transformers class, streaming what does not fit the budgets.

        Args:
            pretrained_model_name_or_path: a folder, or a repository on the Hugging Face hub.
            device: "cuda:0", "cpu"; "auto" is CUDA when there is one.
            dtype: of the weights; "auto" is the checkpoint's own.
            attn_implementation: a backend's name in transformers; "auto" is the fastest that works here.
            device_memory: budget for weights on a CUDA device: bytes, "4GiB", "min" for the least that works, or "auto" for what is
                free less room for the cache and activations. Ignored on CPU, where there is one memory.
            host_memory: budget for weights in host memory, in the same notation.
            token: for gated and private repositories; HF_TOKEN is used otherwise.
            hf_token: the older name of `token`.
            layer_shards_saving_path: folder for the layer store, which only checkpoints that cannot be read in place need.
            delete_original: remove the checkpoint's own shards once the layer store holds everything.
            trust_remote_code: run the checkpoint's own Python code where it needs some. Off by default.
            show_layer_progress: a progress bar over the layers of each forward, on a terminal; None shows it when layers come from disk.
            profiling_mode: time every layer, in `streaming_stats()["stages"]`. Slower.
            max_seq_len: tokens that the automatic budgets keep room for in the cache (4096).
            prefetching: load the next layer while one computes.

        Raises:
            CheckpointError: the checkpoint is absent, incomplete, damaged or of an unknown architecture.
            BudgetError: a budget is too small; the message states the minimum.
            ValueError: an argument is not understood.
        """
        folder = resolve(pretrained_model_name_or_path, token or hf_token, trust_remote_code)
        target = _device(device)
        config = load_config(folder, trust_remote_code)
        entries = moved_entries(folder) or read_index(folder)
        weights_dtype = pick_dtype(dtype, config, entries)
        stock = stock_class(config, folder, trust_remote_code)
        streamed = streamed_class(family_of(config.model_type).cls, stock)
        model, recipes = _skeleton(streamed, config, entries, folder, attn_implementation, target, weights_dtype)

        reader = Reader(entries)
        tied = resolve_ties(model, recipes, reader.view)
        check_complete(model, recipes, folder)
        dtypes = dtypes_of(model, weights_dtype)
        base, stages = find_stages(model, tied, dtypes)
        if _readable_in_place(recipes, entries, dtypes):
            located = {recipe.targets[0]: entries[recipe.sources[0][0]] for recipe in recipes}
        else:
            root = Path(layer_shards_saving_path or default_root()).expanduser()
            store = LayerStore(root, entries, model, dtypes)
            located = store.fill(_store_groups(model, base, stages), recipes)
            if delete_original:
                remove_originals(folder, entries, store)
        plan = _plan(base, stages, target, device_memory, host_memory, config, weights_dtype, max_seq_len)
        on_disk = any(tier == "disk" for tier in plan.tiers.values())
        progress = on_disk if show_layer_progress is None else show_layer_progress
        stats = stream(model, base, stages, located, plan, target, Options(prefetching, progress, profiling_mode))
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        model.name_or_path = os.fspath(pretrained_model_name_or_path)
        model.attach(plan, stats, folder, target, trust_remote_code)
        return model


def _device(device: str | torch.device) -> torch.device:
    """Raises ValueError for a device that is neither CPU nor CUDA, or is not there."""
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not understood. Use 'auto', 'cpu' or 'cuda:0'.") from error
    if target.type not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r} is not supported. Use 'auto', 'cpu' or 'cuda:0'.")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={device!r} is not there: {torch.cuda.device_count()} CUDA devices. Use 'auto' or 'cpu'.")
    return torch.device("cuda", target.index or 0) if target.type == "cuda" else target


def _skeleton(
    streamed: type[StreamedModel],
    config: PretrainedConfig,
    entries: dict[str, TensorEntry],
    folder: Path,
    attn_implementation: str,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[StreamedModel, list[Recipe]]:
    """The model without weights (parameters on the meta device, buffers real), and how to make its weights."""

    def build(name: str) -> StreamedModel:
        # Buffers such as rotary frequencies are computed by the model's own constructor, so they stay real.
        with init_empty_weights(include_buffers=False):
            return streamed._from_config(config, dtype=dtype, attn_implementation=name)

    model = build_with_attention(build, attn_implementation, device, dtype)
    recipes = recipes_for(model, entries)
    if repair_head_dim(config, model, recipes, entries):
        model = build(model.active_attention_implementation)
    shapes = {key: entry.shape for key, entry in entries.items()}
    check_shapes(model, recipes, shapes, folder)
    return model.eval(), recipes


def _readable_in_place(recipes: list[Recipe], entries: dict[str, TensorEntry], dtypes: dict[str, torch.dtype]) -> bool:
    """Whether every parameter lies on disk as the model wants it, under whatever name."""
    return all(
        recipe.converter is None and entries[recipe.sources[0][0]].dtype == dtypes[recipe.targets[0]] for recipe in recipes
    )


def _store_groups(model: PreTrainedModel, base: Stage | None, stages: list[Stage]) -> dict[str, list[str]]:
    """File stem -> names of the parameters and persistent buffers in it: a file for each stage, one for the rest."""
    groups = {stage.name: [weight.name for weight in stage.weights] for stage in stages}
    buffers = [name for name, _ in model.named_buffers() if name in model.state_dict()]
    rest = [weight.name for weight in base.weights] if base else []
    return groups | {"resident": rest + buffers} if rest or buffers else groups


def _plan(
    base: Stage | None,
    stages: list[Stage],
    device: torch.device,
    device_memory: int | str,
    host_memory: int | str,
    config: PretrainedConfig,
    dtype: torch.dtype,
    max_seq_len: int | None,
) -> Plan:
    sizes = {stage.name: stage.nbytes for stage in stages}
    base_bytes = base.nbytes if base else 0
    if device.type == "cpu":
        room = cache_bytes(config, dtype, max_seq_len)
        return make_plan(sizes, base_bytes, host_budget(host_memory, room), None)
    on_device = device_budget(device_memory, device, config, dtype, max_seq_len)
    return make_plan(sizes, base_bytes, on_device, host_budget(host_memory, 0))
