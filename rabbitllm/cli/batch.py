"""Answer a file of requests into another, in OpenAI's batch format.

Each line of IN is a request to /v1/chat/completions or /v1/completions, and gets a line of OUT as
soon as it is answered. Requests share every pass over the weights, the longest first, as many as
there is memory for; where more tokens a second are predicted so, their caches lie in host memory
and come to the GPU layer by layer. Whatever ends the command: run it again, and it goes on where it
stopped. A line that cannot be answered gets an error line. With --ray the machines of a Ray cluster
answer, each worker a block of lines at a time.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rabbitllm.cli.options import (
    add_model_arguments,
    name_of,
    positive,
)
from rabbitllm.cli.sharing import Demand, add_sharing_arguments, demand_of, load_shared

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
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="have a Ray cluster answer: its address, auto for the one that this machine is in, "
        "or local for one of this machine alone. MODEL must be there for each worker",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="of the cluster, each with a model of its own (one for each GPU, or for each machine "
        "where there is none)",
    )


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
    if arguments.workers and not arguments.ray:
        raise ValueError("--workers are those of a Ray cluster. Give its address with --ray.")
    lock = FileLock(output.with_name(f".{output.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"Another process writes to {output}.") from error
    with lock, source.open("rb") as asked, output.open("a+b") as file:
        written = Output(file)
        written.resume(output)
        job = BatchFile(asked, written)
        lines: Lines | None = None
        if arguments.ray:
            job.survey(len)
            answer, unit = _by_ray(arguments), "B"
        else:
            lines = lines_of(arguments, demand_of(source, arguments.max_new_tokens))
            job.survey(lines.measure)
            answer, unit = lines.answer, "tok"
        begun, tally = time.perf_counter(), job.tally
        with tqdm(
            total=tally.total, unit=unit, unit_scale=True, disable=None, dynamic_ncols=True
        ) as bar:
            for _ in job.run(answer):
                rate = tally.new_tokens / (time.perf_counter() - begun)
                bar.set_postfix_str(f"{tally.answered} answers, {rate:.1f} new tokens/s", False)
                bar.update(tally.work - bar.n)
    seconds = time.perf_counter() - begun
    caches = ", caches in host memory" if lines and lines.offloaded else ""
    print(
        f"{tally.answered} answered, {tally.before} before, {tally.refused} refused; "
        f"{tally.new_tokens} tokens written at {tally.new_tokens / seconds:.2f} tokens/s"
        f"{caches}",
        file=sys.stderr,
    )
    return 0


def lines_of(arguments: argparse.Namespace, demand: Demand) -> "Lines":
    """Loads the model that answers lines.

    Args:
        arguments: of the sub-command.
        demand: what they ask.
    """
    from rabbitllm.batching import Batch
    from rabbitllm.cli.answer import placement
    from rabbitllm.serving.lines import Lines
    from rabbitllm.serving.prompts import Prompts

    model, offloaded = load_shared(arguments, demand)
    print(f"Loaded: {placement(model)}", file=sys.stderr)
    name = arguments.name or name_of(arguments.model)
    batch = Batch(model, arguments.sequences, offloaded, prompts_first=True)
    return Lines(Prompts(model, name, arguments.max_new_tokens), batch)


class Worker:
    """One of a Ray cluster's: loads the model once, and answers block after block.

    Args:
        arguments: of the sub-command.
        demand: what all lines ask.
    """

    def __init__(self, arguments: argparse.Namespace, demand: Demand) -> None:
        self._lines = lines_of(arguments, demand)

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        """Answers a block of lines, see `Lines`."""
        return self._lines(block)


def shares(
    arguments: argparse.Namespace,
    there: Mapping[str, float],
    machines: Iterable[Mapping[str, Any]],
) -> tuple[int, dict[str, float]]:
    """How many workers a cluster gets, and what Ray keeps of it for each.

    Args:
        arguments: of the sub-command.
        there: GPUs and CPU cores of the cluster, by Ray's names.
        machines: as Ray lists them, with those that have left.
    """
    gpus = int(there.get("GPU", 0)) if arguments.device != "cpu" else 0
    workers = arguments.workers or gpus or sum(machine["Alive"] for machine in machines)
    if gpus:
        return workers, {"num_gpus": min(1, gpus / workers)}
    return workers, {"num_cpus": int(there["CPU"]) // workers}


def _by_ray(arguments: argparse.Namespace) -> Any:
    """What has a Ray cluster answer lines, as `BatchFile.run` takes it."""
    try:
        import ray.data
    except ImportError as error:
        raise ImportError(f"{error}. --ray needs: pip install 'rabbitllm[ray]'") from error
    from rabbitllm.serving.lines import Answered

    folder = Path(arguments.model).expanduser()
    given = {
        name: value for name, value in vars(arguments).items() if name not in ("main", "check")
    }
    demand = demand_of(arguments.source, arguments.max_new_tokens)
    given["name"] = arguments.name or name_of(arguments.model)
    given["model"] = str(folder.resolve()) if folder.is_dir() else arguments.model

    def answer(lines: Iterable[tuple[int, bytes]]) -> Iterator[Answered]:
        items = [{"number": number, "line": line} for number, line in lines]
        if not items:
            return
        ray.init(address=arguments.ray)
        workers, share = shares(arguments, ray.cluster_resources(), ray.nodes())
        size = min(arguments.sequences, -(-len(items) // workers))
        ray.data.DataContext.get_current().enable_progress_bars = False
        answered = ray.data.from_items(
            items, override_num_blocks=-(-len(items) // size)
        ).map_batches(
            Worker,
            fn_constructor_args=[argparse.Namespace(**given), demand],
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=workers),
            **share,
        )
        for block in answered.iter_batches(batch_size=None):
            for text in block["answered"]:
                yield Answered(**json.loads(text))

    return answer
