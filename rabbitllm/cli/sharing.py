"""What commands share that answer many at once: their arguments, and room for caches."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rabbitllm.cli.options import budgets_from, load, positive, prepare_only

if TYPE_CHECKING:
    from rabbitllm import StreamedModel
    from rabbitllm.measure.limits import Limits
    from rabbitllm.streaming.several import Budgets
    from rabbitllm.streaming.staged import StagedModel

BYTES = 4
"""Of a request's text, for each token, about: enough to know how many have room at once."""
WORTH = 1.05
"""Times the tokens that caches in the host's memory must be predicted to make: predictions err by
a few percent, and a layer more or less that fits makes as much."""


class Shared(NamedTuple):
    """A model that answers many at once.

    Attributes:
        model: itself.
        offloaded: where the cache is to lie, as `rabbitllm.batching.Batch` takes it.
    """

    model: "StreamedModel"
    offloaded: bool | None = None


class Choice(NamedTuple):
    """What there is to be room for.

    Attributes:
        rows: sequences at once.
        offloaded: their cache lies in the host's memory.
        rate: tokens a second that are predicted for all of them.
    """

    rows: int
    offloaded: bool
    rate: float


class Demand(NamedTuple):
    """What is going to be asked.

    Attributes:
        sequences: how many.
        tokens: of each, prompt and longest answer, on average.
    """

    sequences: int
    tokens: int


def add_sharing_arguments(parser: argparse.ArgumentParser, sequences: int) -> None:
    """Adds what commands that answer many requests at once take; `sequences` by default."""
    parser.add_argument(
        "--sequences",
        type=positive,
        default=sequences,
        metavar="N",
        help="answers at once, which share passes; fewer where memory is short (%(default)s)",
    )
    parser.add_argument(
        "--cache-tokens",
        type=positive,
        metavar="TOKENS",
        help="tokens of all answers and prompts at once that the budget keeps room for, before "
        "weights (what --max-seq-len keeps)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=512,
        metavar="N",
        help="of a chat answer whose request sets no limit (%(default)s)",
    )


def load_shared(arguments: argparse.Namespace, demand: Demand | None = None) -> Shared:
    """Loads a model that answers many at once, as `add_sharing_arguments` describes that.

    Without a word on that, a GPU whose budget does not hold all weights keeps as much room for
    caches as makes for most tokens a second, by what moves then and the rates measured; or has them
    lie in the host's memory, where they take no room and move.

    cuDNN's attention is left out: its plan for a length that is new, and every pass has another
    one, takes 48 ms of the host on a Hopper GPU (torch 2.11).

    Args:
        arguments: the parsed ones.
        demand: what is going to be asked, if that is known.
    """
    import torch

    from rabbitllm.batching.keeping import max_seq_len_for
    from rabbitllm.measure.limits import measure_limits
    from rabbitllm.streaming.picking import pick_devices

    torch.backends.cuda.enable_cudnn_sdp(False)
    devices = pick_devices(arguments.device)
    rows, tokens = arguments.sequences, 0
    if arguments.cache_tokens:
        tokens = -(-arguments.cache_tokens // rows)
    elif not (demand and demand.sequences) or arguments.max_seq_len or devices[0].type == "cpu":
        return Shared(load(arguments))
    prepared = prepare_only(arguments, devices[0], arguments.attn_implementation)
    location = prepared.location
    encoded = location.encoded(arguments.compression, arguments.store)
    staged = prepared.staged.stored(encoded)
    chosen: Choice | None = None
    if not tokens and demand:
        files = sorted({entry.file for entry in location.entries.values()})
        limits = measure_limits(devices, staged.dtype, files)
        most = min(rows, demand.sequences)
        chosen = best_rows(staged, budgets_from(arguments, devices), limits, demand.tokens, most)
        if chosen is None:
            return Shared(load(arguments))
        rows, tokens = chosen.rows, demand.tokens
        where = ", their caches in host memory" if chosen.offloaded else ""
        print(
            f"Keeping room for {rows} sequences of {tokens} tokens{where}: {chosen.rate:.0f} "
            "tokens/s predicted",
            file=sys.stderr,
        )
    offloaded = chosen.offloaded if chosen else None
    config, device = prepared.model.config, devices[0]
    kept = max_seq_len_for(config, staged.dtype, device, rows, tokens, bool(offloaded))
    return Shared(load(arguments, max_seq_len=max(kept, arguments.max_seq_len or 0)), offloaded)


def best_rows(
    staged: "StagedModel",
    budgets: "Budgets",
    limits: "Limits",
    tokens: int,
    most: int,
    host: int | None = None,
) -> Choice | None:
    """For how many sequences to keep room, so that most tokens a second are predicted.

    More of them share a pass, and less of the weights stays where it is computed with. Where one
    GPU computes, their cache may lie in the host's memory instead.

    Args:
        staged: the model.
        budgets: of the devices.
        limits: of the roads.
        tokens: of each sequence.
        most: sequences that there are.
        host: bytes that caches in the host's memory may take beside the weights there; None for
            what is free.

    Returns:
        The choice; None where a budget is no size, or not even one sequence has room. Caches are in
        the host's memory only for `WORTH` times the tokens.
    """
    from rabbitllm.utils.memory import available_host_memory

    free = available_host_memory() if host is None else host
    single = budgets.first.type == "cuda" and len(budgets.totals) == 1 and bool(limits.pinned)
    choices = [
        choice
        for offloaded in ((False, True) if single else (False,))
        for choice in _choices(staged, budgets, limits, tokens, _steps(most), offloaded, free)
    ]
    return max(
        choices,
        key=lambda choice: choice.rate / (WORTH if choice.offloaded else 1),
        default=None,
    )


def _choices(
    staged: "StagedModel",
    budgets: "Budgets",
    limits: "Limits",
    tokens: int,
    steps: Sequence[int],
    offloaded: bool,
    free: int,
) -> Iterator[Choice]:
    """Those of the numbers of sequences that have room, see `best_rows`."""
    from rabbitllm.batching.keeping import max_seq_len_for
    from rabbitllm.batching.offloading import PINNED, pass_seconds
    from rabbitllm.measure.prediction import predict
    from rabbitllm.streaming.several import place_on
    from rabbitllm.streaming.working import Work, read_geometry, working_bytes

    config, device = staged.model.config, budgets.first
    geometry = read_geometry(config)
    for rows in steps:
        kept = max_seq_len_for(config, staged.dtype, device, rows, tokens, offloaded)
        working = working_bytes(geometry, staged.dtype, device, Work(1, kept))
        if any(
            total == "min" or total < staged.minimum_bytes + working
            for total in budgets.totals.values()
        ):
            return
        placed, plan = place_on(staged, replace(budgets, max_seq_len=kept))
        moved, seconds = predict(placed, plan, limits)
        if offloaded:
            cached = geometry.cached(Work(rows, 0, tokens)) * staged.dtype.itemsize
            if PINNED * cached > free - plan.host_bytes:
                return
            assert limits.pinned
            seconds = pass_seconds(seconds, moved, cached, limits.pinned * 1e9)
        yield Choice(rows, offloaded, rows / seconds)


def _steps(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... and the number itself."""
    powers = [1 << power for power in range(most.bit_length())]
    return sorted({most, *powers, *(3 * power // 2 for power in powers if power * 3 <= 2 * most)})


def demand_of(source: Path, max_new_tokens: int) -> Demand:
    """What a file of requests is going to ask, about.

    Args:
        source: the file.
        max_new_tokens: the most tokens of an answer whose request sets no limit.
    """
    from rabbitllm.serving.body import decode

    count, tokens = 0, 0
    with source.open("rb") as lines:
        for line in lines:
            try:
                body = decode(line)["body"]
                limits = (body.get(name) for name in ("max_completion_tokens", "max_tokens"))
                answer = next((limit for limit in limits if limit), max_new_tokens)
                tokens += len(line) // BYTES + int(answer)
            except (ValueError, LookupError, TypeError, AttributeError):
                continue  # it is going to be refused
            count += 1
    return Demand(count, tokens // count if count else 0)
