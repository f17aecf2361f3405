"""The text of matrix/releases.toml, brought up to date: the newest patch of each minor release."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAJOR = 5
ROW = "[[release]]"
MARK = "\nsentinel = true"
NEWEST = "  # the newest"
"""Follows a mark that passes on to the next newest release; other marks stay."""

Minor = tuple[int, int]


def newest_patches(versions: Iterable[str]) -> dict[Minor, str]:
    """Minor -> its newest version, oldest first, of the major release that is measured."""
    ordered = [v for v in sorted(map(Version, versions)) if v.major == MAJOR]
    return {(v.major, v.minor): str(v) for v in ordered}


def updated(text: str, newest: Mapping[Minor, str]) -> str:
    """The text of matrix/releases.toml with exactly these releases.

    Comments stay, and so do sentinel marks; the oldest and the newest row have one in any case.

    Args:
        text: paragraphs, each a comment or one row with the comments that belong to it.
        newest: see `newest_patches`.

    Raises:
        ValueError: a paragraph holds several rows; or the index has less than the file, as when
            pip could not reach it and answered from a folder of wheels.
    """
    paragraphs = [part.strip("\n") for part in re.split(r"\n\s*\n", text) if part.strip()]
    rows = {minor(_row(part)["version"]): part for part in paragraphs if ROW in part}
    lacking = {".".join(map(str, key)) for key in rows.keys() - newest.keys()}
    lacking |= {v for v in versions_of(text) if Version(newest.get(minor(v), v)) < Version(v)}
    if lacking or not newest:
        raise ValueError(
            f"pip's answer lacks listed releases ({', '.join(sorted(lacking)) or 'all'}): was the "
            "index reached? matrix/releases.toml is as it was."
        )
    ends = min(newest), max(newest)
    made = [
        _made(rows.get(key, f'{ROW}\nversion = "{version}"'), version, key in ends, key == ends[1])
        for key, version in sorted(newest.items())
    ]
    return "\n\n".join([*(part for part in paragraphs if ROW not in part), *made]) + "\n"


def changes(before: str, after: str) -> list[str]:
    """A line for each minor whose versions or marks differ."""
    old, new = _by_minor(before), _by_minor(after)
    return [
        f"{'.'.join(map(str, key))}: {old.get(key, 'not listed')} -> {new[key]}"
        for key in new
        if old.get(key) != new[key]
    ]


def versions_of(text: str) -> list[str]:
    """The versions that matrix/releases.toml lists."""
    return [row["version"] for row in tomllib.loads(text).get("release", [])]


def minor(version: str) -> Minor:
    """(major, minor) of a version."""
    parsed = Version(version)
    return parsed.major, parsed.minor


def _made(paragraph: str, version: str, sentinel: bool, newest: bool) -> str:
    """A row with this version; a mark that it had for being the newest goes, or stays."""
    paragraph = paragraph.replace(MARK + NEWEST, "")
    paragraph = re.sub(r'(?m)^version = "[^"]*"', f'version = "{version}"', paragraph)
    if sentinel and not _row(paragraph).get("sentinel"):
        paragraph += MARK + (NEWEST if newest else "")
    return paragraph


def _row(paragraph: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = tomllib.loads(paragraph)["release"]
    if len(rows) != 1:
        raise ValueError(f"matrix/releases.toml: an empty line must part these rows:\n{paragraph}")
    return rows[0]


def _by_minor(text: str) -> dict[Minor, str]:
    """Minor -> its versions, with their marks, in words."""
    found: dict[Minor, list[str]] = defaultdict(list)
    for row in tomllib.loads(text).get("release", []):
        mark = " (sentinel)" if row.get("sentinel") else ""
        found[minor(row["version"])].append(row["version"] + mark)
    return {key: ", ".join(words) for key, words in found.items()}
