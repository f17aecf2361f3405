"""Prepare a checkpoint ahead of time, so that loading it is quick.

Fills the layer store, which only checkpoints that cannot be read in place need: those of an older
family, in another dtype, or to be compressed. A mixture's experts can be read one by one, and are
put together here. A split that was stopped goes on where it stopped.
"""

import argparse

from rabbitllm.cli.options import add_checkpoint_arguments, prepare_only

EXAMPLE = "  rabbitllm split mistralai/Mixtral-8x7B-Instruct-v0.1 --store /data/rabbitllm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's arguments."""
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--delete-original",
        action="store_true",
        help="remove the checkpoint's own shards once the store holds everything",
    )


def main(arguments: argparse.Namespace) -> int:
    """Runs the sub-command; returns its exit status."""
    import torch

    from rabbitllm.checkpoint.tensors import files_of, in_plain_pieces
    from rabbitllm.utils.memory import format_size

    location = prepare_only(arguments, torch.device("cpu")).location
    codec = location.worth_encoding(arguments.compression, read_again=True)
    located = location.locate(arguments.store, arguments.delete_original, codec)
    files, own = files_of(located.values()), files_of(location.entries.values())
    if files <= own and in_plain_pieces(located.values()):
        files = set(location.split(arguments.store, codec).glob("*.safetensors"))
    size = format_size(sum(file.stat().st_size for file in files))
    for folder in sorted({file.parent for file in files}):
        if files <= own:
            print(f"{arguments.model} is read in place from {folder} ({size}): nothing to split")
        else:
            print(f"{arguments.model} is split in {folder} ({len(files)} files, {size})")
    return 0
