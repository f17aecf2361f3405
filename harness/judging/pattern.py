"""Patterns over messages: text, in which * stands for anything.

No regular expressions: one that is written carelessly runs for minutes on a long message.
"""

from __future__ import annotations


def fits(pattern: str, message: str) -> bool:
    """Whether a message has the pieces of a pattern between its stars, in their order."""
    begin = 0
    for piece in pattern.split("*"):
        at = message.find(piece, begin)
        if at < 0:
            return False
        begin = at + len(piece)
    return True
