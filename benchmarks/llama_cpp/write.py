"""A checkpoint of random weights as GGUF: the shape that is streamed, as llama.cpp reads it.

    python -m benchmarks.llama_cpp.write --shape qwen2-7b --folder /data

Writes /data/qwen2-7b, unless it is there, and /data/qwen2-7b.gguf: the same weights in the same
dtype, vectors in float32, as llama.cpp's convert_hf_to_gguf.py has them. There is no tokenizer in
it; llama-bench and llama-batched-bench draw token ids.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from benchmarks.checkpoints import SHAPES, write_checkpoint
from rabbitllm.checkpoint.index import SAFETENSORS

QWEN2 = tuple(name for name, config in SHAPES.items() if config.model_type == "qwen2")
"""The shapes that can be written."""
LAYER = re.compile(r"blk\.(\d+)\.")
"""How GGUF names what belongs to a layer."""


def write_gguf(checkpoint: Path, file: Path) -> Path:
    """Writes a Qwen2 checkpoint as GGUF, tensor by tensor; returns `file`.

    Args:
        checkpoint: folder of `write_checkpoint`, in bfloat16.
        file: a complete one is kept.
    """
    import gguf

    if file.is_file():
        return file
    config = json.loads((checkpoint / "config.json").read_text())
    weight_map = json.loads((checkpoint / SAFETENSORS.index).read_text())["weight_map"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    partial = file.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN2])
    _describe(writer, config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for weight, shard in weight_map.items():
        module, _, suffix = weight.rpartition(".")
        with safe_open(checkpoint / shard, "pt") as opened:
            shape = opened.get_slice(weight).get_shape()
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType.BF16
        size = int(np.prod(shape)) * (4 if len(shape) == 1 else 2)
        name = f"{names.get_name(module)}.{suffix}"
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for weight, shard in weight_map.items():
        with safe_open(checkpoint / shard, "pt") as opened:
            writer.write_tensor_data(_stored(opened.get_tensor(weight)))
    writer.close()
    return partial.rename(file)


def _describe(writer: Any, config: dict[str, Any]) -> None:
    """Puts a Qwen2 config into a GGUFWriter."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def _stored(weight: torch.Tensor) -> Any:
    """The array whose bytes GGUF holds of a weight."""
    return weight.float().numpy() if weight.dim() == 1 else weight.view(torch.int16).numpy()


def layers_of(file: Path) -> list[int]:
    """Bytes of each layer's weights in a GGUF, in order."""
    import gguf

    sizes: dict[int, int] = {}
    for tensor in gguf.GGUFReader(file).tensors:
        if layer := LAYER.match(tensor.name):
            number = int(layer[1])
            sizes[number] = sizes.get(number, 0) + int(tensor.n_bytes)
    return [sizes[number] for number in sorted(sizes)]


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, writes; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.llama_cpp.write",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=QWEN2, default="qwen2-7b", help="(%(default)s)")
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoint and GGUF")
    asked = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = asked.folder / asked.shape
    write_checkpoint(SHAPES[asked.shape], checkpoint, torch.bfloat16, device)
    print(write_gguf(checkpoint, asked.folder / f"{asked.shape}.gguf"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
