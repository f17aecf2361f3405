"""A file of requests, answered into another: https://platform.openai.com/docs/guides/batch.

A line goes into the output whole, as soon as its answer is there, and carries the number of its
line in the input. So whatever ends the process, the next one knows what is done: a line that was
cut short is taken off, and the others are not asked again.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rabbitllm.batching import Batch, Row
from rabbitllm.errors import BudgetError
from rabbitllm.serving.body import decode
from rabbitllm.serving.errors import ApiError, error_body
from rabbitllm.serving.prompts import ENDPOINTS, Prompts
from rabbitllm.serving.replies import Reply

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
        tokens: of its prompt and its longest answer.
        number: of the line, from 1.
        start: the place in the file where it begins, in bytes.
    """

    tokens: int
    number: int
    start: int


@dataclass(frozen=True, eq=False)
class _Asked:
    """A line whose answer is on the way."""

    task: Task
    custom_id: str
    reply: Reply
    rows: list[Row]

    @property
    def over(self) -> bool:
        return all(row.answer.done() for row in self.rows)


@dataclass
class Tally:
    """What has become of the lines.

    Attributes:
        before: lines that an earlier run has answered.
        answered: lines that this one has.
        refused: lines that cannot be answered, which have got an error line.
        new_tokens: of the answers.
        work: tokens of prompts and longest answers that are over.
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

    def write(self, number: int, custom_id: object, response: Any, error: Any = None) -> None:
        """Adds a line, which is on the disk when this returns."""
        line = {
            "id": f"{PREFIX}{number}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }
        self.file.write(json.dumps(line).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.done[number] = custom_id


class BatchFile:
    """Answers the lines of one file into another.

    Args:
        prompts: read the requests.
        batch: answers them.
        source: the input, opened in bytes.
        output: what has been read of the answers.
    """

    def __init__(self, prompts: Prompts, batch: Batch, source: BinaryIO, output: Output) -> None:
        self.tally = Tally(before=len(output.done))
        self._prompts = prompts
        self._batch = batch
        self._source = source
        self._output = output
        self._tasks: list[Task] = []
        self._asked: list[_Asked] = []

    def survey(self) -> None:
        """Reads every line, gives those that are no requests an error line, sorts the others.

        The longest come first: they decide how many have room at once, and none is left for last.
        """
        seen: set[str] = set()
        for number, start, line in _lines(self._source):
            try:
                custom_id = _custom_id(line, seen)
                if number in self._output.done:
                    self._check(number, custom_id)
                    continue
                tokens = self._measure(line)
            except LineError as error:
                self._refuse(number, None, None, _error("invalid_line", f"line {number}: {error}"))
            except ApiError as error:
                self._refuse(number, custom_id, _response(error.status, _body(error)))
            else:
                self._tasks.append(Task(tokens, number, start))
        self._tasks.sort()
        self.tally.total = sum(task.tokens for task in self._tasks)

    def run(self) -> Iterator[Tally]:
        """Answers them all; yields what has become of them behind each pass.

        Raises:
            Exception: what ended an answer and is no fault of its line; run it again then.
        """
        while self._tasks or self._asked:
            while self._tasks and len(self._batch.waiting) < 2:
                self._begin(self._tasks.pop())
            self._batch.step()
            for asked in [asked for asked in self._asked if asked.over]:
                self._asked.remove(asked)
                self._end(asked)
            yield self.tally

    def _begin(self, task: Task) -> None:
        self._source.seek(task.start)
        line = decode(self._source.readline())
        request, prompt, answers = self._understand(line)
        ids = prompt[0].tolist()
        rows = [self._batch.add(ids, **options) for options in answers]
        reply = self._prompts.reply(request, ENDPOINTS[line["url"]][1], prompt)
        self._asked.append(_Asked(task, line["custom_id"], reply, rows))

    def _end(self, asked: "_Asked") -> None:
        number, custom_id = asked.task.number, asked.custom_id
        self.tally.work += asked.task.tokens
        try:
            answers = [row.answer.result() for row in asked.rows]
        except (BudgetError, ValueError) as error:
            self._refuse(number, custom_id, _response(400, error_body(str(error))))
            return
        body = asked.reply.whole(asked.rows)
        self._output.write(number, custom_id, _response(200, body, asked.reply.id))
        self.tally.answered += 1
        self.tally.new_tokens += sum(answer.new_tokens for answer in answers)

    def _refuse(self, number: int, custom_id: object, response: Any, error: Any = None) -> None:
        if number not in self._output.done:
            self._output.write(number, custom_id, response, error)
            self.tally.refused += 1

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

    def _measure(self, line: bytes) -> int:
        """Tokens of a line's prompt and its longest answer."""
        _, prompt, answers = self._understand(decode(line))
        return sum(prompt.shape[1] + int(each["max_new_tokens"]) for each in answers)

    def _understand(self, line: dict[str, Any]) -> tuple[Any, torch.Tensor, list[dict[str, Any]]]:
        kind, _ = ENDPOINTS[line["url"]]
        asked, prompt, answers = self._prompts.understand(kind, line["body"])
        if asked.stream:
            raise ApiError(400, "stream=True is not supported in a batch", param="stream")
        return asked, prompt, answers


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


def _response(status: int, body: Any, request: str | None = None) -> dict[str, Any]:
    return {"status_code": status, "request_id": request, "body": body}


def _body(error: ApiError) -> dict[str, Any]:
    return error_body(str(error), code=error.code, param=error.param)


def _error(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
