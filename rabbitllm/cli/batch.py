"""Answer a file of requests into another, in OpenAI's batch format.

Each line of IN is a request to /v1/chat/completions or /v1/completions, and gets a line of OUT as
soon as it is answered. Requests share every pass over the weights, the longest first, as many as
there is memory for. Whatever ends the command: run it again, and it goes on where it stopped. A
line that cannot be answered gets an error line.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rabbitllm.cli.options import (
    add_model_arguments,
    add_sharing_arguments,
    load_shared,
    name_of,
)

if TYPE_CHECKING:
    from rabbitllm.serving.lines import Lines

EXAMPLE = """\
  rabbitllm batch Qwen/Qwen2.5-7B-Instruct questions.jsonl answers.jsonl --device-memory 8GiB
  where a line of questions.jsonl is
    {"custom_id": "q1", "method": "POST", "url": "/v1/chat/completions", "body": {"model":
    "Qwen/Qwen2.5-7B-Instruct", "messages": [{"role": "user", "content": "Hi"}]}}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's arguments."""
    add_model_arguments(parser)
    parser.add_argument("source", type=Path, metavar="IN", help="requests, one a line")
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="answers; continued if it is there"
    )
    parser.add_argument("--name", help="what requests call the model (MODEL; a folder's last part)")
    add_sharing_arguments(parser, sequences=256)


def main(arguments: argparse.Namespace) -> int:
    """Runs the sub-command; returns its exit status."""
    try:
        from rabbitllm.serving.batch_file import BatchFile, Output
    except ImportError as error:
        raise ImportError(f"{error}. Batches need: pip install 'rabbitllm[serve]'") from error
    from filelock import FileLock, Timeout
    from tqdm import tqdm

    source, output = arguments.source, arguments.output
    if output.exists() and output.samefile(source):
        raise ValueError(f"{output} is the file of requests. Give another one for the answers.")
    lock = FileLock(output.with_name(f".{output.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"Another process writes to {output}.") from error
    with lock, source.open("rb") as asked, output.open("a+b") as file:
        written = Output(file)
        written.resume(output)
        job = BatchFile(asked, written)
        lines = lines_of(arguments)
        job.survey(lines.measure)
        begun, tally = time.perf_counter(), job.tally
        with tqdm(
            total=tally.total, unit="tok", unit_scale=True, disable=None, dynamic_ncols=True
        ) as bar:
            for _ in job.run(lines.answer):
                rate = tally.new_tokens / (time.perf_counter() - begun)
                bar.set_postfix_str(f"{tally.answered} answers, {rate:.1f} new tokens/s", False)
                bar.update(tally.work - bar.n)
    seconds = time.perf_counter() - begun
    print(
        f"{tally.answered} answered, {tally.before} before, {tally.refused} refused; "
        f"{tally.new_tokens} tokens written at {tally.new_tokens / seconds:.2f} tokens/s",
        file=sys.stderr,
    )
    return 0


def lines_of(arguments: argparse.Namespace) -> "Lines":
    """Loads the model that answers lines."""
    from rabbitllm.batching import Batch
    from rabbitllm.cli.answer import placement
    from rabbitllm.serving.lines import Lines
    from rabbitllm.serving.prompts import Prompts

    model = load_shared(arguments)
    print(f"Loaded: {placement(model)}", file=sys.stderr)
    name = arguments.name or name_of(arguments.model)
    return Lines(Prompts(model, name, arguments.max_new_tokens), Batch(model, arguments.sequences))
