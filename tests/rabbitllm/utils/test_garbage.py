"""Times without garbage collections."""

import gc
from collections.abc import Iterator

import pytest

from rabbitllm.utils.garbage import no_garbage


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    enabled = gc.isenabled()
    yield
    (gc.enable if enabled else gc.disable)()


@pytest.mark.parametrize("collects", [True, False])
def test_it_is_as_before_behind_the_last(collects: bool) -> None:
    (gc.enable if collects else gc.disable)()
    first, second = no_garbage(), no_garbage()
    with first:
        second.__enter__()
        assert not gc.isenabled()
    assert not gc.isenabled(), "the other one goes on"
    second.__exit__(None, None, None)
    assert gc.isenabled() == collects


def test_an_error_ends_it() -> None:
    gc.enable()
    with pytest.raises(ValueError, match="x"), no_garbage():
        raise ValueError("x")
    assert gc.isenabled()
