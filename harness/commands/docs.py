"""Make the reports and README's tables again from the records; --check only compares.

exit status: 0 if all is current or was written, 1 if --check finds a stale document
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from harness.judging.expected_failures import load_expected
from harness.judging.tokenizers import told_apart
from harness.matrix import ROOT, load_matrix
from harness.records import read_all, write_atomically
from harness.render import badges, stock, sweep, throughput, upstream
from harness.render.folder import compare, report_texts
from harness.render.readme import families_of, with_part

EXAMPLE = "  tox -e docs -- --check"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="write nothing; name what is stale")
    parser.add_argument(
        "--before",
        default="git:HEAD",
        metavar="PLACE",
        help="show what changed since: a folder of records, or git:REVISION (default: git:HEAD)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Writes the documents, or names the stale ones."""
    return check(ROOT) if arguments.check else write(ROOT, arguments.before)


def write(root: Path, before: str) -> int:
    """Writes the documents of a checkout, with what changed in its records since `before`."""
    compare(root / "reports", before)
    for path, text in texts(root).items():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text)
        print(path.relative_to(root))
    return 0


def check(root: Path) -> int:
    """Names the documents that are not what their records make; returns 1 if there are any."""
    stale = [
        path.relative_to(root).as_posix()
        for path, text in texts(root).items()
        if not path.exists() or path.read_text("utf-8") != text
    ]
    for name in stale:
        print(f"stale: {name}", file=sys.stderr)
    if stale:
        print("Make them again and commit them: tox -e docs", file=sys.stderr)
    return 1 if stale else 0


def texts(root: Path) -> dict[Path, str]:
    """Path -> text of every document of a checkout that comes from records.

    Raises:
        FileNotFoundError: there is no folder of records, or a benchmark has none.
        ValueError: there are no records, or README has no place for what they say.
    """
    reports, readme = root / "reports", root / "README.md"
    found = report_texts(reports)
    parts = {
        "families": families_of(found[reports / "compatibility.md"]),
        "speed": throughput.section(reports / "benchmarks"),
    }
    text = readme.read_text("utf-8")
    for part, content in parts.items():
        text = with_part(text, part, content, readme.name)
    found[readme] = text
    results = sweep.read_all(reports / "sweep")
    if results:
        found[reports / sweep.PAGE] = sweep.page(results)
    matrix = load_matrix()
    order = [row.version for row in matrix.releases]
    cells = json.loads(found[reports / "compatibility.json"])["cells"]
    made = badges.badges(cells, matrix.architectures, order[-1])
    found |= {reports / badges.FOLDER / name: text for name, text in made.items()}
    records = told_apart(read_all(reports / "results"))
    found |= stock.pages(reports, records, order, load_expected())
    if own_tests := upstream.read_all(reports / "upstream"):
        found[reports / upstream.PAGE] = upstream.page(own_tests)
    return found
