"""Lines of OpenAI's batch format, answered by one model."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rabbitllm.batching import Batch, Row
from rabbitllm.errors import BudgetError
from rabbitllm.serving.body import decode
from rabbitllm.serving.errors import ApiError, error_body
from rabbitllm.serving.prompts import ENDPOINTS, Prompts
from rabbitllm.serving.replies import Reply


@dataclass(frozen=True)
class Answered:
    """What became of a line.

    Attributes:
        number: of the line in its file, from 1.
        custom_id: what it calls itself, if it is a request.
        response: status and body, as the server's would be; None if it is no request.
        error: what is wrong with one that is none.
        new_tokens: of its answers.
    """

    number: int
    custom_id: str | None
    response: Mapping[str, Any] | None
    error: Mapping[str, str] | None = None
    new_tokens: int = 0

    @property
    def refused(self) -> bool:
        """It could not be answered."""
        return self.response is None or self.response["status_code"] != 200


def refusal(number: int, custom_id: str, error: ApiError) -> Answered:
    """Of a request that cannot be answered."""
    body = error_body(str(error), code=error.code, param=error.param)
    return Answered(number, custom_id, _response(error.status, body))


class Lines:
    """Answers lines that are requests; they share passes.

    Args:
        prompts: read the requests.
        batch: answers them.
    """

    def __init__(self, prompts: Prompts, batch: Batch) -> None:
        self._prompts = prompts
        self._batch = batch

    @property
    def offloaded(self) -> bool:
        """The cache of those that are answered lies in the host's memory."""
        return self._batch.offloaded

    def measure(self, line: bytes) -> int:
        """Tokens of a line's prompt and its longest answers.

        Raises:
            ApiError: it asks for what cannot be done.
        """
        _, prompt, answers = self._understand(decode(line))
        return sum(prompt.shape[1] + int(each["max_new_tokens"]) for each in answers)

    def answer(self, lines: Iterable[tuple[int, bytes]]) -> Iterator[Answered | None]:
        """Answers lines, each as soon as there is room; None behind a pass that ended none.

        Args:
            lines: numbers and requests, in the order of their turn.

        Raises:
            Exception: what ended an answer and is no fault of its line.
        """
        coming, asked = iter(lines), list[_Asked]()
        more = True
        while more or asked:
            while more and len(self._batch.waiting) < 2:
                if (following := next(coming, None)) is None:
                    more = False
                    break
                begun = self._begin(*following)
                if isinstance(begun, _Asked):
                    asked.append(begun)
                else:
                    yield begun
            if not asked:
                continue
            self._batch.step()
            if not (over := [each for each in asked if each.over]):
                yield None
            for each in over:
                asked.remove(each)
                yield each.answered()

    def __call__(self, block: Mapping[str, Any]) -> dict[str, list[str]]:
        """Answers a block, as Ray Data's `map_batches` asks for it.

        Args:
            block: "number" and "line" of each request.

        Returns:
            "answered": what `Answered` has, as JSON.
        """
        lines = zip(map(int, block["number"]), map(bytes, block["line"]), strict=True)
        answered = (each for each in self.answer(lines) if each)
        return {"answered": [json.dumps(asdict(each)) for each in answered]}

    def _begin(self, number: int, line: bytes) -> "_Asked | Answered":
        fields = decode(line)
        try:
            request, prompt, answers = self._understand(fields)
        except ApiError as error:
            return refusal(number, fields["custom_id"], error)
        ids = prompt[0].tolist()
        rows = [self._batch.add(ids, **options) for options in answers]
        reply = self._prompts.reply(request, ENDPOINTS[fields["url"]][1], prompt)
        return _Asked(number, fields["custom_id"], reply, rows)

    def _understand(self, line: dict[str, Any]) -> tuple[Any, torch.Tensor, list[dict[str, Any]]]:
        kind, _ = ENDPOINTS[line["url"]]
        asked, prompt, answers = self._prompts.understand(kind, line["body"])
        if asked.stream:
            raise ApiError(400, "stream=True is not supported in a batch", param="stream")
        return asked, prompt, answers


@dataclass(frozen=True, eq=False)
class _Asked:
    """A line whose answer is on the way."""

    number: int
    custom_id: str
    reply: Reply
    rows: list[Row]

    @property
    def over(self) -> bool:
        return all(row.answer.done() for row in self.rows)

    def answered(self) -> Answered:
        try:
            answers = [row.answer.result() for row in self.rows]
        except (BudgetError, ValueError) as error:
            return refusal(self.number, self.custom_id, ApiError(400, str(error)))
        response = _response(200, self.reply.whole(self.rows), self.reply.id)
        written = sum(answer.new_tokens for answer in answers)
        return Answered(self.number, self.custom_id, response, new_tokens=written)


def _response(status: int, body: Any, request: str | None = None) -> dict[str, Any]:
    return {"status_code": status, "request_id": request, "body": body}
