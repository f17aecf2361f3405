"""A matrix times one token: values, what torch's own product does instead, and threads."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from rabbitllm.streaming import gemv
from rabbitllm.streaming.gemv import LEAST, QuickProducts, quick_loops, quick_products, suits
from rabbitllm.streaming.host import HostWorker

ROWS, COLUMNS = 1030, 1024


@pytest.fixture
def loops() -> Any:
    pytest.importorskip("numba")
    found = quick_loops()
    assert found
    return found


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


@pytest.mark.parametrize("shape", [(COLUMNS,), (1, COLUMNS), (1, 1, COLUMNS)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3, 700])
@torch.no_grad()
def test_a_product_is_its_exact_value_rounded_once(
    loops: Any, shape: tuple[int, ...], biased: bool, threads: int
) -> None:
    given, weight = drawn(*shape), torch.nn.Parameter(drawn(ROWS, COLUMNS), requires_grad=False)
    bias = drawn(ROWS) if biased else None
    with QuickProducts(loops, threads):
        found = linear(given, weight, bias)
    exact = linear(given.double(), weight.double(), None if bias is None else bias.double())
    stocks = linear(given, weight, bias)
    assert (found.shape, found.dtype) == (stocks.shape, stocks.dtype)
    # Half a unit of the last of the 8 bits of bfloat16, and what sums in float32 are off.
    assert ((found - exact).abs() <= exact.abs() * 2.0**-8 + 1e-3).all()


@torch.no_grad()
def test_what_is_no_number_stays_none(loops: Any) -> None:
    weight = drawn(ROWS, COLUMNS)
    weight[3, 5], weight[4, 6] = torch.nan, torch.inf
    with QuickProducts(loops):
        found = linear(drawn(COLUMNS).abs(), weight)
    assert found[3].isnan()
    assert found[4] == torch.inf
    assert int(found.isfinite().sum()) == ROWS - 2


@torch.no_grad()
def test_every_layer_of_a_module_goes_through_it(loops: Any) -> None:
    calls = []

    def multiply(*arrays: Any) -> None:
        *shaped, parts = arrays
        calls.append(([each.shape for each in shaped], parts))
        loops.multiply(*arrays)

    mlp = torch.nn.Sequential(torch.nn.Linear(COLUMNS, ROWS), torch.nn.SiLU()).bfloat16()
    with QuickProducts(SimpleNamespace(multiply=multiply), 2):  # type: ignore[arg-type]
        mlp(drawn(1, 1, COLUMNS))
        mlp(drawn(1, 2, COLUMNS))
    half = (COLUMNS // 2,)
    assert calls == [([(ROWS, *half), half, (ROWS,)], 2)]


class Quantised(torch.Tensor):
    """A tensor that multiplies in its own way."""


SUITING = {"given": drawn(1, 1, COLUMNS), "weight": drawn(ROWS, COLUMNS)}


@pytest.mark.parametrize(
    "other",
    [
        {"given": drawn(1, 2, COLUMNS)},
        {"given": drawn(0, 1, COLUMNS)},
        {"given": drawn(1, 1, COLUMNS, dtype=torch.float32)},
        {"given": drawn(1, COLUMNS).as_subclass(Quantised)},
        {"weight": drawn(ROWS, COLUMNS).as_subclass(Quantised)},
        {"weight": drawn(COLUMNS, ROWS).T},
        {"weight": drawn(LEAST // COLUMNS - 1, COLUMNS)},
        {"weight": drawn(ROWS * COLUMNS + 1)[1:].view(ROWS, COLUMNS)},
        {"weight": drawn(ROWS, COLUMNS, dtype=torch.float16)},
        {"weight": torch._neg_view(drawn(ROWS, COLUMNS))},
        {"bias": drawn(1, ROWS)},
        {"bias": drawn(ROWS, dtype=torch.float32)},
        {"bias": drawn(ROWS).to("meta")},
        {"weight": drawn(ROWS, COLUMNS).to("meta")},
        {"given": drawn(1, COLUMNS + 1), "weight": drawn(ROWS, COLUMNS + 1)},
    ],
)
@torch.no_grad()
def test_torch_multiplies_what_is_anything_else(other: dict[str, torch.Tensor]) -> None:
    assert suits(*SUITING.values())
    assert not suits(*(SUITING | other).values())


def test_torch_multiplies_where_a_gradient_may_be_asked_for() -> None:
    assert not suits(*SUITING.values())


# where there is none


def test_without_numba_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemv, "find_spec", lambda _: None)
    assert gemv._loops.__wrapped__() is None
    monkeypatch.setattr(gemv, "quick_loops", lambda: None)
    assert quick_products(2) is None


def test_threads_that_two_callers_must_not_share_are_not_used(
    loops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from numba.np import ufunc

    monkeypatch.setattr(ufunc, "threading_layer", lambda: "workqueue")
    assert gemv._loops.__wrapped__() is None


@pytest.mark.parametrize("kind", ["ValueError", "LoweringError"])
def test_a_numba_that_does_not_work_is_said(
    loops: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    from numba.core import errors

    def broken(*_: object) -> None:
        raise vars(errors).get(kind, ValueError)("no threads")

    monkeypatch.setattr(loops, "multiply", broken)
    with caplog.at_level(logging.WARNING):
        assert gemv._loops.__wrapped__() is None
    assert "no threads" in caplog.text


# the thread


def test_threads_are_as_many_as_were_asked_for(loops: Any) -> None:
    # In a process of its own: numba's first product has torch's threads set, too.
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from rabbitllm.streaming.gemv import quick_loops\n"
        "from rabbitllm.streaming.host import HostWorker\n"
        "quick_loops(); print(torch.get_num_threads(), HostWorker(1).run(torch.get_num_threads))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "1"]


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_workers_that_begin_at_once_do_not_end_the_process(loops: Any, layer: str) -> None:
    code = (
        "import threading, torch\n"
        "from rabbitllm.streaming.host import HostWorker\n"
        "workers = [HostWorker(1) for _ in range(4)]\n"
        "threads = [threading.Thread(target=each.run, args=(int,)) for each in workers]\n"
        "[each.start() for each in threads]; [each.join() for each in threads]\n"
        "print([type(each._products).__name__ for each in workers])"
    )
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert found.stdout.count("NoneType" if layer == "workqueue" else "QuickProducts") == 4


@torch.no_grad()
def test_a_forked_process_leaves_it_to_torch(loops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with QuickProducts(SimpleNamespace(multiply=None)):  # type: ignore[arg-type]
        monkeypatch.setattr(os, "getpid", lambda: 0)
        assert linear(*SUITING.values()).shape == (1, 1, ROWS)


@torch.no_grad()
def test_a_host_worker_multiplies_so_and_nobody_else_does(
    loops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def multiply(*arrays: Any) -> None:
        seen.append((threading.current_thread().name, numba.get_num_threads()))
        loops.multiply(*arrays)

    import numba

    monkeypatch.setattr(gemv, "quick_loops", lambda: SimpleNamespace(multiply=multiply))
    worker = HostWorker(1)
    expected = linear(*SUITING.values())
    found = worker.run(lambda: linear(*SUITING.values()))
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-2)
    assert [threads for _, threads in seen] == [1]
    assert seen[0][0].startswith("rabbitllm-host")
