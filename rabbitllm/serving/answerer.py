"""A model for columns of prompts: a stateful callable, such as Ray Data's `map_batches` takes."""

import os
from collections.abc import Mapping
from typing import Any

from rabbitllm.auto import AutoModel
from rabbitllm.batching import Batch, Row
from rabbitllm.errors import BudgetError
from rabbitllm.prompt import encode_chat, encode_text


class Answerer:
    """Loads a model once, and answers the prompts of block after block.

        data = ray.data.read_parquet("questions").repartition(target_num_rows_per_block=256)
        data = data.map_batches(
            Answerer,
            fn_constructor_args=["Qwen/Qwen2.5-7B-Instruct"],
            fn_constructor_kwargs={"max_new_tokens": 64, "device_memory": "8GiB"},
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=2),
            num_gpus=1,
        )
        data.write_parquet("answers")

    Without Ray it is called with a dict of columns, or given to `map` of a Hugging Face dataset,
    with `batched=True`. The prompts of a block share passes, so blocks of many are fast.

    Args:
        model: a folder or a hub repository.
        column: the name of the column with the prompts. A text is continued as it is; a list of
            messages, each with role and content, is a conversation for the chat template.
        max_new_tokens: the most tokens of an answer.
        most: sequences that have a part in a pass at most; fewer do where memory is short.
        generation: options of `Batch.add`, such as `temperature` and `stop`.
        options: of `AutoModel.from_pretrained`, such as `device_memory`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        column: str = "prompt",
        max_new_tokens: int = 512,
        most: int = 256,
        generation: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.model = AutoModel.from_pretrained(model, **options)
        self._column = column
        self._options = {**(generation or {}), "max_new_tokens": max_new_tokens}
        self._batch = Batch(self.model, most, prompts_first=True)

    def __call__(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """Answers a block.

        Args:
            block: columns, by name.

        Returns:
            The same, with two columns more: "answer", the texts; "error", why there is none. One of
            them is None in each line.

        Raises:
            Exception: what ended an answer and is no fault of its prompt.
        """
        asked = [self._read(cell) for cell in block[self._column]]
        longest_first = sorted(range(len(asked)), key=lambda place: -len(asked[place][0]))
        rows = {
            place: self._batch.add(asked[place][0], **self._options)
            for place in longest_first
            if asked[place][0]
        }
        self._batch.run()
        told = [
            _told(rows[place]) if place in rows else (None, error)
            for place, (_, error) in enumerate(asked)
        ]
        return {
            **block,
            "answer": [answer for answer, _ in told],
            "error": [error for _, error in told],
        }

    def _read(self, cell: Any) -> tuple[list[int], str | None]:
        """Token ids of a prompt, or none and why it is no prompt."""
        try:
            if isinstance(cell, str):
                prompt = encode_text(self.model, cell)
            else:
                prompt = encode_chat(self.model, [dict(message) for message in cell])
        except (ValueError, TypeError, LookupError) as error:
            return [], str(error)
        return prompt[0].tolist(), None


def _told(row: Row) -> tuple[str | None, str | None]:
    """What became of a sequence: its answer, or why there is none."""
    try:
        row.answer.result()
    except (BudgetError, ValueError) as error:
        return None, str(error)
    return row.text, None
