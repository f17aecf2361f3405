"""A file of requests, answered into another: https://platform.openai.com/docs/guides/batch.

A line goes into the output whole, as soon as its answer is there, and carries the number of its
line in the input. So whatever ends the process, the next one knows what is done: a line that was
cut short is taken off, and the others are not asked again.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from rabbitllm.serving.body import decode
from rabbitllm.serving.errors import ApiError
from rabbitllm.serving.lines import Answered, refusal
from rabbitllm.serving.prompts import ENDPOINTS

PREFIX = "batch_req_"
"""Of an output line's id; the number of the input's line follows."""
BEGINNING = f'{{"id": "{PREFIX}'.encode()
"""Of an output line."""
LINE = ("custom_id", "method", "url", "body")
"""What a line of the input has."""


class LineError(Exception):
    """A line of the input that is no request."""


@dataclass(frozen=True, order=True)
class Task:
    """A line that is to be answered.

    Attributes:
        cost: what it takes, beside others.
        number: of the line, from 1.
        start: the place in the file where it begins, in bytes.
    """

    cost: int
    number: int
    start: int


@dataclass
class Tally:
    """What has become of the lines.

    Attributes:
        before: lines that an earlier run has answered.
        answered: lines that this one has.
        refused: lines that cannot be answered, which have got an error line.
        new_tokens: of the answers.
        work: the cost of lines that are over.
        total: and of all.
    """

    before: int = 0
    answered: int = 0
    refused: int = 0
    new_tokens: int = 0
    work: int = 0
    total: int = 0


@dataclass
class Output:
    """The file of answers.

    Attributes:
        file: opened to be read and appended to.
        done: the number of each line that it answers, and the custom_id there.
    """

    file: BinaryIO
    done: dict[int, object] = field(default_factory=dict)

    def resume(self, path: Path) -> None:
        """Reads what an earlier run has written, and takes off a line that it did not finish.

        Raises:
            ValueError: the file is not what such a run writes.
        """
        end = 0
        self.file.seek(0)
        for count, line in enumerate(self.file, 1):
            try:
                if not line.endswith(b"\n") and BEGINNING.startswith(line[: len(BEGINNING)]):
                    break
                written = json.loads(line)
                self.done[int(written["id"].removeprefix(PREFIX))] = written["custom_id"]
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"Line {count} of {path} is none that `rabbitllm batch` wrote. Give another "
                    "file for the answers."
                ) from error
            end += len(line)
        self.file.truncate(end)
        self.file.seek(end)

    def write(self, answered: Answered) -> None:
        """Adds a line, which is on the disk when this returns."""
        line = {
            "id": f"{PREFIX}{answered.number}",
            "custom_id": answered.custom_id,
            "response": answered.response,
            "error": answered.error,
        }
        self.file.write(json.dumps(line).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.done[answered.number] = answered.custom_id


class BatchFile:
    """Has the lines of one file answered into another.

    Args:
        source: the input, opened in bytes.
        output: what has been read of the answers.

    Attributes:
        tally: what has become of the lines.
        tasks: those that are to be answered, the costliest last.
    """

    def __init__(self, source: BinaryIO, output: Output) -> None:
        self.tally = Tally(before=len(output.done))
        self.tasks: list[Task] = []
        self._source = source
        self._output = output

    def survey(self, cost: Callable[[bytes], int]) -> None:
        """Reads every line, gives those that are no requests an error line, sorts the others.

        The costliest come first: they decide how many have room at once, and none is left for last.

        Args:
            cost: of a line that is a request; an ApiError refuses it.
        """
        seen: set[str] = set()
        for number, start, line in _lines(self._source):
            try:
                custom_id = _custom_id(line, seen)
                if number in self._output.done:
                    self._check(number, custom_id)
                    continue
                self.tasks.append(Task(cost(line), number, start))
            except LineError as error:
                wrong = {"code": "invalid_line", "message": f"line {number}: {error}"}
                self._note(Answered(number, None, None, wrong))
            except ApiError as error:
                self._note(refusal(number, custom_id, error))
        self.tasks.sort()
        self.tally.total = sum(task.cost for task in self.tasks)

    def run(
        self, answer: Callable[[Iterable[tuple[int, bytes]]], Iterable[Answered | None]]
    ) -> Iterator[Tally]:
        """Has them all answered; yields what has become of them as it goes on.

        Args:
            answer: numbers and lines -> what becomes of them, or None when something went on.

        Raises:
            Exception: what ended an answer and is no fault of its line; run it again then.
        """
        costs = {task.number: task.cost for task in self.tasks}
        for answered in answer(self._ask()):
            if answered:
                self._note(answered)
                self.tally.work += costs[answered.number]
            yield self.tally

    def _ask(self) -> Iterator[tuple[int, bytes]]:
        while self.tasks:
            task = self.tasks.pop()
            self._source.seek(task.start)
            yield task.number, self._source.readline()

    def _note(self, answered: Answered) -> None:
        if answered.number in self._output.done:
            return
        self._output.write(answered)
        self.tally.refused += answered.refused
        self.tally.answered += not answered.refused
        self.tally.new_tokens += answered.new_tokens

    def _check(self, number: int, custom_id: str) -> None:
        """Whether the answer that is there is one to that line.

        Raises:
            ValueError: it is not.
        """
        if self._output.done[number] not in (custom_id, None):
            raise ValueError(
                f"Line {number} of the requests is {custom_id!r}, and what was written answers "
                f"{self._output.done[number]!r} there. Give another file for the answers."
            )


def _lines(source: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Number, place and text of each line that is not blank."""
    start = 0
    source.seek(0)
    for number, line in enumerate(source, 1):
        if line.strip():
            yield number, start, line
        start += len(line)


def _custom_id(text: bytes, seen: set[str]) -> str:
    """A line's own name.

    Raises:
        LineError: the line is none of a batch, or its name was seen before.
    """
    try:
        line = decode(text)
    except ValueError as error:
        raise LineError(f"it is no JSON: {error}") from error
    if not isinstance(line, dict) or line.keys() != set(LINE):
        raise LineError(f"it must be an object of {', '.join(LINE)}")
    if not isinstance(line["custom_id"], str):
        raise LineError("custom_id must be a text")
    if line["method"] != "POST" or line["url"] not in ENDPOINTS:
        raise LineError(f"method must be POST, and url one of {', '.join(ENDPOINTS)}")
    if line["custom_id"] in seen:
        raise LineError(f"an earlier line has the custom_id {line['custom_id']!r}")
    seen.add(line["custom_id"])
    return str(line["custom_id"])
