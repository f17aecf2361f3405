"""Codecs: how stored bytes become weights. A number format is a module here, and a row of `CODECS`.

Disk, memory and links carry what is stored; decoding comes last.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from operator import index
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rabbitllm.checkpoint.codecs.codec import Codec

CODECS = {
    "plain": "rabbitllm.checkpoint.codecs.plain:Plain",
    "lossless": "rabbitllm.checkpoint.codecs.lossless:Lossless",
    "lossless-float32": "rabbitllm.checkpoint.codecs.lossless_float32:LosslessFloat32",
    "8bit": "rabbitllm.checkpoint.codecs.lossy:EightBit",
    "4bit": "rabbitllm.checkpoint.codecs.lossy:FourBit",
}
"""Name of a codec -> its class, which is imported when it is asked for: a command's help, which
names compressions, does not wait for torch."""
COMPRESSIONS = {
    "lossless": "bfloat16 in 3/4 of its bytes, float32 in 7/8, bit for bit",
    "8bit": "half of bfloat16's bytes, nearly the same answers",
    "4bit": "a quarter of them, and other answers",
}
"""Those that users can ask for by name -> what they do."""

ALSO = {"lossless": ("lossless-float32",)}
"""Compression -> codecs of weights that the one of its name does not take."""

HEADER = "rabbitllm.codecs"
"""In a file's metadata: weight name -> {"codec": its name, "dtype", "shape", and its fields}."""
HEADER_UP_TO_FORMAT_3 = "rabbitllm.packed"
"""The same: weight name -> [shape, lowest, outliers] of what is stored lossless. Such a store may
be all that is left of a checkpoint."""


def codec_class(name: str) -> type["Codec"]:
    """The codec of this name; KeyError or TypeError if there is none."""
    found: type[Codec] = resolve_name(CODECS[name])
    return found


def codecs_of(compression: str) -> list[type["Codec"]]:
    """The codecs that a compression stores with, the first that takes a weight."""
    return [codec_class(name) for name in (compression, *ALSO.get(compression, ()))]


def to_header(codecs: Mapping[str, tuple["Codec", Mapping[str, Any]]]) -> dict[str, str]:
    """What a file's metadata say of the weights in it.

    Args:
        codecs: weight name -> how it is stored, and what else is to be known of it.
    """
    described = {
        name: {"codec": codec.name, **asdict(codec), **about}  # type: ignore[call-overload]
        for name, (codec, about) in codecs.items()
    }
    return {HEADER: json.dumps(described)} if described else {}


def from_header(metadata: Mapping[str, str]) -> dict[str, tuple["Codec", dict[str, Any]]]:
    """What a file's metadata say of the weights in it; those that are not named are stored plain.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: they say what nobody writes.
    """
    described = {**json.loads(metadata.get(HEADER, "{}"))}
    for name, (shape, lowest, outliers) in json.loads(
        metadata.get(HEADER_UP_TO_FORMAT_3, "{}")
    ).items():
        fields = {"lowest": lowest, "outliers": outliers}
        described[name] = {"codec": "lossless", "dtype": "BF16", "shape": shape, **fields}
    found = {}
    for name, fields in described.items():
        about = {key: fields.pop(key) for key in ("dtype", "shape")}
        codec = codec_class(fields.pop("codec"))
        found[name] = codec(**{field: _value(value) for field, value in fields.items()}), about
    return found


def _value(found: Any) -> int | str:
    """A field's value: an integer, or a name."""
    return found if isinstance(found, str) else index(found)
