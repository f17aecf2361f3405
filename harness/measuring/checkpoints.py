"""Checkpoints to measure with: tiny seeded ones in the stock or the original layout, a real one."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from harness.matrix import Cell, Gguf
from harness.measuring import formats
from harness.measuring.golden.manifest import digest, write_checkpoint
from harness.measuring.references import REFERENCES
from harness.measuring.references.model import OriginalModel
from harness.records.code import hash_code
from harness.records.provenance import golden, recipe

SEED = 20
NOISE = 0.2
"""Standard deviation of what is added to norms and biases, so that none is neutral."""
GAIN = 1.5
"""Of matrices: attention is sharp enough for positions to matter, logits are far from equal."""
GGUF_KEY = "tokenizer.ggml."
SPLITTING: dict[str, list[Any]] = {
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
}
"""How text is cut before the merges, by the name that GGUF files have for it."""


def checkpoint(cell: Cell, cache: Path) -> Path:
    """A folder with the cell's checkpoint, made unless `cache` has it.

    Cells that differ only in backend share it.
    """
    here = Path(__file__)
    key = [recipe(cell.architecture), cell.dtype]
    if cell.architecture.reference:
        key += [hash_code(here.parent / "references", ["*.py"])]
    elif cell.architecture.gguf is None:
        # A release's own way of writing is measured too. A real model takes seconds and is the same
        # to all.
        key += [transformers.__version__, hash_code(here.parent, [here.name, "formats/*.py"])]
    name = f"{cell.architecture.id}-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}"
    return made_once(cache / name, lambda folder: write(cell, folder))


def write(cell: Cell, folder: Path) -> None:
    """Writes the cell's checkpoint."""
    if cell.architecture.gguf is not None:
        write_real(cell.architecture.gguf, cell.dtype, folder)
    elif cell.architecture.reference:
        REFERENCES[cell.architecture.reference].write(folder, SEED)
    else:
        tiny_model(cell).save_pretrained(folder)
        name_type(cell.architecture.model_type, folder / "config.json")
        if cell.architecture.format:
            formats.encode(cell.architecture.format, folder)


def name_type(model_type: str, config: Path) -> None:
    """Has config.json name a model type, where its authors have their own for transformers'."""
    fields = json.loads(config.read_text("utf-8"))
    if fields["model_type"] != model_type:
        config.write_text(json.dumps(fields | {"model_type": model_type}, indent=2), "utf-8")


def golden_checkpoint(architecture: str, sha256: str, cache: Path) -> Path:
    """A folder with the architecture's golden checkpoint, made unless `cache` has it.

    Args:
        architecture: the row's id.
        sha256: what the file must have.
        cache: where it is kept.

    Raises:
        ValueError: the file made here has other bits, so its answers would say nothing.
    """
    if (found := digest(architecture)) != sha256:
        raise ValueError(f"the golden checkpoint of {architecture} is {found}, not {sha256}")
    name = f"golden-{architecture}-{hashlib.sha256(golden(architecture).encode()).hexdigest()[:12]}"
    return made_once(cache / name, lambda folder: write_checkpoint(architecture, folder))


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, which `make` fills unless it is there.

    It appears under its name only when complete, whoever else makes the same one, and whenever the
    process stops.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        make(scratch)
        try:
            os.rename(scratch, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def stock_class(cell: Cell) -> type[PreTrainedModel]:
    """The stock class of the cell's architecture."""
    cls: type[PreTrainedModel] = getattr(transformers, cell.architecture.model_class)
    return cls


def config_class(cell: Cell) -> type[PretrainedConfig]:
    """Of what the cell's config.json says.

    A type that transformers does not know is another name for that of the stock class.
    """
    name, own = cell.architecture.model_type, stock_class(cell).config_class
    if name not in CONFIG_MAPPING:
        return cast(type[PretrainedConfig], own)
    return CONFIG_MAPPING[name]


def read_config(cell: Cell, folder: Path) -> PretrainedConfig:
    """The config that the stock class is built from: of a composite one, its text part."""
    config: Any = config_class(cell).from_pretrained(folder)
    config.model_type = type(config).model_type  # not the file's, for keys are mapped by it
    whole = cell.architecture.model_class in config.architectures
    taken: PretrainedConfig = config if whole else config.get_text_config()
    return taken


def tiny_model(cell: Cell) -> PreTrainedModel:
    """The cell's architecture with random weights, the same in every process.

    It is of the class that its config names, of which the cell's may read a part alone.
    """
    row = cell.architecture
    config: Any = config_class(cell)(**{"architectures": [row.model_class]} | row.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)  # some vectors begin as random ones
        model: PreTrainedModel = getattr(transformers, config.architectures[0])(config)
    generator = torch.Generator().manual_seed(SEED)
    learned = {name for name, _ in model.named_parameters()}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name in sorted(tensors.keys() & (learned | model.state_dict().keys())):
            randomise(tensors[name], generator)
    model.to(getattr(torch, cell.dtype))
    return model


def randomise(tensor: torch.Tensor, generator: torch.Generator) -> None:
    """Fills in place: matrices with variance GAIN^2 / fan-in, vectors around what they are."""
    if not tensor.is_floating_point():
        return
    noise = torch.randn(tensor.shape, generator=generator)
    if tensor.dim() < 2:
        tensor.add_(NOISE * noise)
    else:
        tensor.copy_(noise * GAIN / tensor.shape[-1] ** 0.5)


def gguf_file(gguf: Gguf) -> Path:
    """The file's path in the installed distribution, whose code need not be importable.

    Raises:
        FileNotFoundError: the distribution does not hold it.
    """
    for entry in importlib.metadata.files(gguf.distribution) or []:
        if entry.name == gguf.file:
            return Path(str(entry.locate()))
    raise FileNotFoundError(f"The installed package {gguf.distribution} holds no {gguf.file}")


def write_real(gguf: Gguf, dtype: str, folder: Path) -> None:
    """Writes a GGUF file's model and tokenizer as transformers does, dequantised to `dtype`."""
    source = gguf_file(gguf)
    names = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    read = transformers.AutoModelForCausalLM.from_pretrained(**names, dtype=getattr(torch, dtype))
    # In newer releases it still counts as quantised, which cannot be written; a plain model with
    # its weights can.
    vars(read.config).pop("quantization_config", None)
    model = type(read)(read.config).to(getattr(torch, dtype))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    write_tokenizer(source, folder)


def write_tokenizer(source: Path, folder: Path) -> None:
    """Writes a GGUF file's byte-level BPE tokenizer in the hub's format, the same by every release.

    What transformers makes of it differs: 5.3 to 5.5 take it for CodeLlama's, and some releases
    write what others read differently.

    Raises:
        KeyError: text is split in a way that `SPLITTING` does not know.
    """
    from gguf import GGUFReader, TokenType  # only such a cell's environment has it

    known = {name: field.contents() for name, field in GGUFReader(source).fields.items()}
    ours = {name.removeprefix(GGUF_KEY): value for name, value in known.items()}
    vocabulary = ours["tokens"]
    merges = [tuple(pair.split(" ")) for pair in ours["merges"]]
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(SPLITTING[ours["pre"]])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(vocabulary, ours["token_type"], strict=True)
    tokenizer.add_special_tokens([token for token, kind in kinds if kind == TokenType.CONTROL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": known["tokenizer.chat_template"],
        **{f"{name}_token": vocabulary[ours[f"{name}_token_id"]] for name in ("bos", "eos")},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")


def load_reference(
    cell: Cell, folder: Path, device: torch.device
) -> PreTrainedModel | OriginalModel:
    """The stock model, fully loaded, its weights in memory of their own.

    For a family that transformers has no class for, its independent forward. Of a quantised
    checkpoint it holds what the format's published formula gives, on every release.

    Weights that `from_pretrained` maps from the file lie at any multiple of 8 bytes, and kernels
    choose their order of summation by alignment: only copies, which torch aligns to 64 bytes, have
    comparable bits.

    Raises:
        ValueError: stock finds no weight for a parameter, or no parameter for a weight.
    """
    if name := cell.architecture.reference:
        return OriginalModel(REFERENCES[name].reference(folder), device)
    if name := cell.architecture.format:
        plain = folder.with_name(f"{folder.name}-decoded")
        made_once(plain, lambda made: formats.decode(name, folder, made))
        model = load_stock(cell, plain, read_config(cell, plain), device)
        model.config._name_or_path = str(folder)  # what it stands for
        return model
    return load_stock(cell, folder, read_config(cell, folder), device)


def load_quantised(cell: Cell, folder: Path, device: torch.device) -> PreTrainedModel:
    """The stock model as a release reads a quantised checkpoint by itself, dequantised."""
    config: Any = read_config(cell, folder)
    config.quantization_config |= {"dequantize": True}
    return load_stock(cell, folder, config, device)


def load_stock(
    cell: Cell, folder: Path, config: PretrainedConfig, device: torch.device
) -> PreTrainedModel:
    """What `from_pretrained` of the stock class loads, see `load_reference`."""
    stock: Any = stock_class(cell)  # whose signature does not tell of the information
    model, loading = stock.from_pretrained(
        folder,
        config=config,
        dtype=getattr(torch, cell.dtype),
        attn_implementation=cell.backend.id,
        output_loading_info=True,
    )
    for what in ("missing", "unexpected", "mismatched"):
        if keys := loading[f"{what}_keys"]:
            raise ValueError(f"stock loads the checkpoint with {what} keys: {listed(keys)}")
    own_memory(model)
    # A streamed weight has no gradient, and torch's matmul chooses its kernel by requires_grad,
    # even under no_grad: the head's logits of one position per row then differ in the last bit.
    model.requires_grad_(False)
    model.to(device)
    model.eval()
    loaded: PreTrainedModel = model
    return loaded


def listed(keys: Iterable[Any]) -> str:
    """The first of the keys, and how many there are."""
    names = sorted(map(str, keys))
    return f"{', '.join(names[:3])} ({len(names)} in all)"


def own_memory(model: PreTrainedModel) -> None:
    """Copies all parameters to fresh memory; tied ones stay tied."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
