from __future__ import annotations

import pytest

from harness.matrix import load_matrix
from harness.running.lots import FEWEST, deal

MATRIX = load_matrix()
RELEASES = ["5.0.0", "5.1.0", "5.2.0"]


def pending(*releases):
    return {release: MATRIX.cells([release], None, ["eager", "sdpa"]) for release in releases}


def names(lots):
    return sorted(cell.id for lot in lots for cell in lot)


@pytest.mark.parametrize("jobs", [1, 3])
def test_releases_run_whole_where_no_job_would_wait(jobs):
    cells = pending(*RELEASES)
    assert deal(cells, jobs, {}) == list(cells.values())


def test_what_is_left_for_the_last_round_is_shared_out():
    cells = pending(*RELEASES)
    whole, other, *shares = deal(cells, 2, {})
    assert [whole, other] == [cells["5.0.0"], cells["5.1.0"]]
    assert len(shares) == 2
    assert names(shares) == names([cells["5.2.0"]])


def test_a_single_release_keeps_all_jobs_busy():
    cells = pending("5.0.0")
    lots = deal(cells, 3, {})
    assert len(lots) == 3
    assert names(lots) == names(cells.values())


def test_shares_take_equally_long_and_keep_architectures_together():
    (group,) = pending("5.0.0").values()
    seconds = {cell.key: 20.0 for cell in group if cell.architecture.gguf}
    one, other = sorted(deal({"5.0.0": group}, 2, seconds), key=len)
    assert not {c.architecture.id for c in one} & {c.architecture.id for c in other}
    costs = [sum(seconds.get(cell.key, 1.0) for cell in lot) for lot in (one, other)]
    assert abs(costs[0] - costs[1]) <= 2
    assert len(other) - len(one) > 30


def test_few_cells_run_in_one_process():
    (group,) = pending("5.0.0").values()
    few = group[: 2 * FEWEST - 1]
    assert deal({"5.0.0": few}, 3, {}) == [few]


def test_the_release_with_most_cells_begins():
    cells = pending("5.0.0", "5.1.0")
    lots = deal(cells | {"5.0.0": cells["5.0.0"][:3]}, 2, {})
    assert [lot[0].release for lot in lots] == ["5.1.0", "5.0.0"]
