from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from rabbitllm.checkpoint.codecs.cast import Cast
from rabbitllm.checkpoint.codecs.codec import Codec
from rabbitllm.checkpoint.codecs.scaled import Scaled
from rabbitllm.streaming.devices import decoder
from rabbitllm.streaming.devices.decoder import Filled
from rabbitllm.streaming.devices.encoded import Encoded, Piece, Portion

FP8 = Scaled("bfloat16", "e4m3", 64, 128, 128, "float32")
ROUTER = Cast(torch.float32, torch.bfloat16)


def filled(codecs: Sequence[Codec]) -> list[Filled]:
    pieces = tuple(Piece(codec, (slice(0, 4),), slice(0, 4)) for codec in codecs)
    memory = torch.empty(4, dtype=torch.uint8)
    return [Filled(Encoded(4, (), (Portion(slice(0, 4), pieces),)), memory, memory)]


@pytest.mark.parametrize(
    ("codecs", "kernels", "expected"),
    [
        ([FP8, ROUTER], True, True),
        ([FP8, ROUTER], False, False),
        ([ROUTER], False, True),
        ([], True, False),
    ],
    ids=["kernels and a cast", "by torch", "casts alone", "plain"],
)
def test_what_takes_no_memory_is_recorded(
    monkeypatch: pytest.MonkeyPatch, codecs: list[Codec], kernels: bool, expected: bool
) -> None:
    def decode_of(kind: type[Codec]) -> decoder.Decode:
        return decoder._by_torch if kind is Cast or not kernels else lambda *_: None

    monkeypatch.setattr(decoder, "decode_of", decode_of)
    assert decoder._recordable(filled(codecs)) == expected
