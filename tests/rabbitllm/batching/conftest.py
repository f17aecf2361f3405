from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rabbitllm import StreamedModel


class Letters:
    """A tokenizer of one letter a token, which knows no end."""

    eos_token_id = eot_token_id = None

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return "".join(chr(97 + i % 26) for i in ids)


@pytest.fixture
def load(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel]
) -> Callable[..., StreamedModel]:
    """`load(architecture)` -> such a model that never ends by itself."""

    def loaded(architecture: str = "llama", **options: Any) -> StreamedModel:
        model = streamed(checkpoint(architecture), **options)
        vars(model)["tokenizer"] = Letters()
        model.generation_config.eos_token_id = None
        return model

    return loaded
