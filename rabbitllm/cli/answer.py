"""Answering on the terminal: text on stdout as it comes, everything else on stderr."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from rabbitllm.model import StreamedModel
from rabbitllm.prompt import encode_chat
from rabbitllm.streaming.stages import REST
from rabbitllm.text import Answer, generate


def answer_aloud(
    model: StreamedModel, messages: Sequence[Mapping[str, str]], max_new_tokens: int
) -> tuple[str, Answer]:
    """Prints a model's answer as it comes, then how fast it came; returns both.

    The first Ctrl-C ends the answer after the token under way.

    Raises:
        KeyboardInterrupt: at the second.
    """
    pieces: list[str] = []
    prompt = encode_chat(model, messages)
    before = model.streaming_stats()
    with _prompt_bar(model) as close_bar, _interruptible() as cancelled:

        def emit(text: str) -> None:
            close_bar()
            pieces.append(text)
            print(text, end="", flush=True)

        answer = generate(model, prompt, emit, max_new_tokens=max_new_tokens, cancelled=cancelled)
    print()
    print(speed(answer, before, model.streaming_stats()), file=sys.stderr)
    return "".join(pieces), answer


def placement(model: StreamedModel) -> str:
    """What is resident, and what streams from where."""
    plan = model.streaming_plan
    parts = plan.places.keys() - {REST}
    resident = len(parts.intersection(plan.resident()))
    kept = f"{resident} of {len(parts)} parts resident on {model.device}"
    hosted, on_disk = len(plan.streamed("host")), len(plan.streamed("disk"))
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
    names = model.streaming_plan.streamed("host", "disk")
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


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into an event: a forward that is cut short cannot be repeated."""
    pressed = threading.Event()

    def press(*_: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
