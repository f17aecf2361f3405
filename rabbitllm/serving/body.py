"""The JSON of a request, read strictly and without holding up others.

The standard library's compiled parser, and every other compiled one, keeps the interpreter to
itself until it is through: a few megabytes of brackets stop the server for a second. Its parser in
Python hands over every few milliseconds, and takes text as fast.
"""

import json
import json.decoder
import json.scanner
from collections.abc import Callable
from typing import Any, NoReturn

CONTAINERS = 50_000
"""Objects and lists that a request may hold: far more than a conversation has parts."""


class _Decoder(json.JSONDecoder):
    """Drops nulls, and refuses what one reader understands differently from another."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object, parse_constant=_no_number)
        self._left = CONTAINERS
        self.parse_array = self._array
        self.parse_string = _text
        make: Callable[[json.JSONDecoder], Any] = vars(json.scanner)["py_make_scanner"]
        self.scan_once = make(self)

    def _array(self, *arguments: Any) -> Any:
        self._count()
        return vars(json.decoder)["JSONArray"](*arguments)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self._count()
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in fields if names.count(name) > 1)
            raise ValueError(f"it names {twice!r} twice")
        for name in fields:
            _check_characters(name)
        return {name: value for name, value in pairs if value is not None}

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it holds more than {CONTAINERS} objects and lists")


def decode(body: bytes) -> Any:
    """The value that a body holds; fields of objects that are null are left out.

    Raises:
        ValueError: it is no JSON in UTF-8, names a field twice, or nests too deeply.
    """
    try:
        return _Decoder().decode(body.decode())
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def _text(*arguments: Any) -> tuple[str, int]:
    text, end = vars(json.decoder)["scanstring"](*arguments)
    _check_characters(text)
    return text, end


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")
