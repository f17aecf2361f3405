"""A tokenizer.model with no more in it than sentencepiece needs: single characters and bytes.

https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from string import printable

NORMAL, UNKNOWN, CONTROL = 1, 2, 3
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def tokenizer_model() -> bytes:
    """The file: <unk>, <s>, </s>, a space, and the other printable characters."""
    pieces = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), (SPACE, NORMAL)]
    pieces += [(character, NORMAL) for character in printable if not character.isspace()]
    return b"".join(
        _field(1, _field(1, piece.encode()) + b"\x15" + struct.pack("<f", -n) + bytes((0x18, kind)))
        for n, (piece, kind) in enumerate(pieces)
    )


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes, of which there are fewer than 128."""
    return bytes((number << 3 | 2, len(content))) + content
