"""What sub-commands share: the arguments that say which model runs how, and what they load."""

import argparse
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rabbitllm.checkpoint.codecs import COMPRESSIONS
from rabbitllm.checkpoint.mistaken import ADAPTER, refuse_mistaken
from rabbitllm.utils.installed import require_torch
from rabbitllm.utils.memory import check_budget

if TYPE_CHECKING:
    import torch

    from rabbitllm import StreamedModel
    from rabbitllm.checkpoint.location import Location
    from rabbitllm.prepare import Prepared
    from rabbitllm.streaming.several import Budgets, Sharing


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL and everything that decides how it loads and runs."""
    add_checkpoint_arguments(parser)
    parser.set_defaults(check=check_model_arguments)
    parser.add_argument(
        "--device-memory",
        default="auto",
        metavar="SIZE",
        help="budget for each CUDA device: 4GiB, 50%% of its memory, bytes, min or auto; several, "
        "with commas between, are one for each (%(default)s)",
    )
    parser.add_argument(
        "--host-memory",
        default="auto",
        metavar="SIZE",
        help="budget for host memory, in the same notation (%(default)s)",
    )
    parser.add_argument(
        "--max-seq-len",
        type=positive,
        metavar="TOKENS",
        help="tokens that automatic budgets keep room for (4096)",
    )
    parser.add_argument(
        "--host-compute",
        action="store_const",
        const="auto",
        default=False,
        help="have the CPU compute MLPs where they wait in host memory, while the link brings "
        "other layers: quicker for one sequence, and other last bits; in prompts, experts likewise",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda:0, several GPUs as in cuda:0,cuda:1, or auto: the first GPU if the model "
        "fits there, or else all (%(default)s)",
    )
    parser.add_argument(
        "--attn-implementation",
        default="auto",
        metavar="NAME",
        help="flash_attention_2, sdpa, eager, ... or auto (%(default)s)",
    )


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL and what decides how its checkpoint is read."""
    parser.set_defaults(check=check_checkpoint_arguments)
    parser.add_argument("model", metavar="MODEL", help="a folder, or a hub repository")
    parser.add_argument(
        "--dtype", default="auto", help="of the weights; auto is the checkpoint's own"
    )
    parser.add_argument(
        "--store",
        metavar="FOLDER",
        help="where layer stores lie (RABBITLLM_CACHE, or ~/.cache/rabbitllm)",
    )
    parser.add_argument(
        "--compression",
        choices=COMPRESSIONS,
        help="read layers from disk in fewer bytes, from a layer store; "
        + "; ".join(f"{name}: {what}" for name, what in COMPRESSIONS.items()),
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code from the checkpoint"
    )


def add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what decides how a model answers."""
    parser.add_argument(
        "--system", type=prose, metavar="TEXT", help="a system message before everything"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=512,
        metavar="N",
        help="of an answer (%(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=temperature,
        metavar="T",
        help="how freely words are drawn, up to 2; 0 always takes the likeliest (the checkpoint's)",
    )
    parser.add_argument(
        "--top-p",
        type=share,
        metavar="P",
        help="draw from the likeliest words that have this share, up to 1 (the checkpoint's)",
    )
    parser.add_argument(
        "--seed", type=seed, metavar="N", help="the same answers from the same seed"
    )


def check_model_arguments(arguments: argparse.Namespace) -> None:
    """Refuses what can be seen to be wrong before anything that takes seconds to import.

    Raises:
        ValueError: a budget is no size, or as `check_checkpoint_arguments`.
    """
    for size in arguments.device_memory.split(","):
        _check_budget("--device-memory", size.strip())
    _check_budget("--host-memory", arguments.host_memory)
    check_checkpoint_arguments(arguments)


def check_checkpoint_arguments(arguments: argparse.Namespace) -> None:
    """Refuses a MODEL that is something else, and a torch that transformers does without.

    Raises:
        ImportError: torch is too old for transformers.
        CheckpointError: it is a file, or a folder of what is no checkpoint; the message says what.
    """
    path = Path(arguments.model).expanduser()
    # With peft an adapter's folder is as good as its model; what needs the model alone says so.
    if not ((path / ADAPTER).is_file() and find_spec("peft")):
        refuse_mistaken(path)
    require_torch()


def load(arguments: argparse.Namespace, **options: object) -> "StreamedModel":
    """Loads the model that the arguments of `add_model_arguments` describe.

    Args:
        arguments: the parsed ones.
        options: of `AutoModel.from_pretrained`, instead of theirs.
    """
    from rabbitllm import AutoModel

    asked = {
        "device": arguments.device,
        "dtype": arguments.dtype,
        "attn_implementation": arguments.attn_implementation,
        "device_memory": arguments.device_memory,
        "host_memory": arguments.host_memory,
        "host_compute": arguments.host_compute,
        "layer_shards_saving_path": arguments.store,
        "compression": arguments.compression,
        "trust_remote_code": arguments.trust_remote_code,
        "max_seq_len": arguments.max_seq_len,
        "show_layer_progress": False,  # a bar would write over the answer
    }
    return AutoModel.from_pretrained(arguments.model, **asked | options)


def name_of(model: str) -> str:
    """What clients call a model: its repository, or the last part of its folder."""
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model


def prepare_only(
    arguments: argparse.Namespace, device: "torch.device", attn_implementation: str = "auto"
) -> "Prepared":
    """Reads the checkpoint of `add_checkpoint_arguments` up to its headers."""
    from rabbitllm.prepare import prepare

    return prepare(
        arguments.model,
        None,
        device,
        arguments.dtype,
        attn_implementation,
        arguments.trust_remote_code,
    )


def budgets_from(arguments: argparse.Namespace, devices: "Sequence[torch.device]") -> "Budgets":
    """What the arguments of `add_model_arguments` allow on these devices and the host."""
    from rabbitllm.stock_arguments import budgets_of
    from rabbitllm.streaming.picking import HOST
    from rabbitllm.streaming.placement import total_budget
    from rabbitllm.streaming.several import Budgets

    each, host = budgets_of(arguments.device_memory, arguments.host_memory, None, devices)
    totals = {device: total_budget(asked, device) for device, asked in each.items()}
    return Budgets(totals, total_budget(host, HOST), arguments.max_seq_len)


def sharing_from(
    arguments: argparse.Namespace, devices: "Sequence[torch.device]", location: "Location"
) -> "Sharing | None":
    """By what `--host-compute` shares out; None where it was not asked for, or does nothing."""
    from rabbitllm.measure.roads import roads_of
    from rabbitllm.streaming.several import Sharing
    from rabbitllm.streaming.sharing import accept_host_compute

    if not accept_host_compute(arguments.host_compute, devices[0]):
        return None
    return Sharing(roads_of, location.plain_in_place())


def positive(text: str) -> int:
    """The type of an argument that is a whole number above zero."""
    return _whole(text, 1, math.inf, "above zero")


def seed(text: str) -> int:
    """The type of an argument that torch takes as a seed."""
    return _whole(text, 0, 2**64 - 1, "from 0 to 2**64 - 1")


def port(text: str) -> int:
    """The type of an argument that is a TCP port, or zero for any."""
    return _whole(text, 0, 65535, "from 0 to 65535")


def temperature(text: str) -> float:
    """The type of an argument that is a temperature."""
    return _number(text, 2)


def share(text: str) -> float:
    """The type of an argument that is a share of one."""
    return _number(text, 1)


def prose(text: str) -> str:
    """The type of an argument in a human language, whatever encoding Python took it for.

    Bytes that are no text in the locale's encoding arrive as lone surrogates (PEP 383), which no
    tokenizer takes. They are text in UTF-8, or become replacement characters.
    """
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _check_budget(option: str, size: str) -> None:
    try:
        check_budget(size)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def _whole(text: str, least: int, most: float, range_: str) -> int:
    if not text.lstrip("+-").isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number {range_}")
    return int(text)


def _number(text: str, most: int) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to {most}")
    return number
