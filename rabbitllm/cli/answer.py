"""Answering on the terminal: text on stdout as it comes, everything else on stderr."""

import argparse
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from rabbitllm.model import StreamedModel
from rabbitllm.prompt import encode_chat
from rabbitllm.streaming.stages import REST
from rabbitllm.text import Answer, generate, sampling

STOPPING = b"\n[ends with this token; Ctrl-C again stops at once]\n"


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the arguments of `add_answer_arguments` say to `answer_aloud`; sows the seed."""
    if arguments.seed is not None:
        torch.manual_seed(arguments.seed)
    asked = sampling(arguments.temperature, arguments.top_p)
    return {"max_new_tokens": arguments.max_new_tokens, **asked}


def answer_aloud(
    model: StreamedModel,
    messages: Sequence[Mapping[str, str]],
    pieces: list[str],
    max_new_tokens: int,
    **sampling: Any,
) -> Answer:
    """Prints a model's answer as it comes, then how fast it came, and whether it was cut short.

    The first Ctrl-C ends the answer after the token under way.

    Args:
        model: that answers.
        messages: with "role" and "content".
        pieces: gets the answer's text as it comes, also when an error ends it.
        max_new_tokens: the most tokens of it.
        sampling: options of transformers' `generate`.

    Raises:
        KeyboardInterrupt: at the second.
        ValueError: the messages cannot be answered, as `encode_chat` says.
    """
    prompt = encode_chat(model, messages)
    before = model.streaming_stats()
    try:
        with _prompt_bar(model) as close_bar, _interruptible() as cancelled:

            def emit(text: str) -> None:
                close_bar()
                pieces.append(text)
                print(text, end="", flush=True)

            answer = generate(
                model, prompt, emit, max_new_tokens=max_new_tokens, cancelled=cancelled, **sampling
            )
    finally:
        if pieces:
            print()
    print(speed(answer, before, model.streaming_stats()), file=sys.stderr)
    if answer.finish_reason == "length":
        print(_limit(answer, max_new_tokens), file=sys.stderr)
    return answer


def placement(model: StreamedModel) -> str:
    """What is resident, and what streams from where."""
    plan = model.streaming_plan
    devices = [str(device) for device in plan.device_bytes]
    parts = plan.places.keys() - {REST, *devices}
    resident = len(parts.intersection(plan.resident()))
    kept = f"{resident} of {len(parts)} parts resident on {' and '.join(devices)}"
    if encoded := len(plan.away("encoded")):
        kept += f", and {encoded} as they are stored"
    hosted, on_disk = len(plan.moving("host")), len(plan.moving("disk"))
    moving = [f"{hosted} from host memory"] if hosted else []
    moving += [f"{on_disk} from disk"] if on_disk else []
    streams = f", streaming {' and '.join(moving)}" if moving else ""
    return f"{kept}{streams}; attention: {model.active_attention_implementation}"


def speed(answer: Answer, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """How fast an answer came, and what it moved.

    Args:
        answer: the generation.
        before: `streaming_stats()` before it.
        after: and after it.
    """
    moved = {key: after[key] - before[key] for key in ("bytes_from_disk", "bytes_to_device")}
    forwards = max(1, after["forwards"] - before["forwards"])
    rate = f" at {answer.tokens_per_second:.2f} tokens/s" if answer.tokens_per_second else ""
    weights = [
        f"{moved[key] / forwards / 1e9:.2f} GB {way}"
        for key, way in (("bytes_from_disk", "from disk"), ("bytes_to_device", "to the device"))
        if moved[key]
    ]
    return (
        f"{answer.prompt_tokens} tokens read in {answer.first_seconds:.2f} s, "
        f"{answer.new_tokens} written{rate}"
        + (f"; each forward moved {' and '.join(weights)}" if weights else "")
    )


@contextmanager
def _prompt_bar(model: StreamedModel) -> Iterator[Callable[[], None]]:
    """Shows which of the streamed layers the prompt's forward has reached, on a terminal.

    Yields what takes the bar away: to be called before the first text is printed.
    """
    names = model.streaming_plan.moving("host", "disk")
    bar: tqdm[Any] = tqdm(
        total=len(names),
        desc="Reading the prompt",
        unit="layer",
        leave=False,
        disable=None if names else True,
    )

    def advance(*_: object) -> None:
        bar.update()

    handles = [model.get_submodule(name).register_forward_hook(advance) for name in names]

    def close() -> None:
        while handles:
            handles.pop().remove()
        bar.close()

    try:
        yield close
    finally:
        close()


def _limit(answer: Answer, max_new_tokens: int) -> str:
    """What cut an answer short."""
    if answer.new_tokens < max_new_tokens:
        whole = answer.prompt_tokens + answer.new_tokens
        return f"The answer ended where the model's context of {whole} tokens is full."
    return f"The answer ended at its limit of {max_new_tokens} tokens: see --max-new-tokens."


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into an event: a forward that is cut short cannot be repeated.

    The second is a KeyboardInterrupt, and those behind it nothing, so that nothing interrupts what
    the second one ends.
    """
    pressed = threading.Event()
    presses = itertools.count(1)

    def press(*_: object) -> None:
        pressed.set()
        match next(presses):
            case 1 if sys.stderr.isatty():  # by the system's call: it may interrupt a print
                os.write(sys.stderr.fileno(), STOPPING)
            case 2:
                raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
