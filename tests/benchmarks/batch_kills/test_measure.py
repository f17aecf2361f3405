"""The benchmark that kills `rabbitllm batch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.batch_kills.measure import wrongs


def line(number: int, tokens: int) -> dict[str, Any]:
    usage = {"completion_tokens": tokens}
    return {"custom_id": f"line {number}", "response": {"body": {"usage": usage}}}


def test_what_is_lost_doubled_or_other_is_named(tmp_path: Path) -> None:
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    undisturbed.write_text("".join(json.dumps(line(i, 5)) + "\n" for i in range(4)))
    written = [line(0, 5), line(1, 5), line(1, 5), line(3, 4)]
    out.write_text("".join(json.dumps(each) + "\n" for each in written))
    assert list(wrongs(out, undisturbed, 4)) == [
        "line 1 is there 2 times",
        "line 2 is there 0 times",
        "line 3: 4 instead of 5",
    ]
    assert list(wrongs(undisturbed, undisturbed, 4)) == []
