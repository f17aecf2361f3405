from __future__ import annotations

import pytest
import torch
import transformers

import rabbitllm
from rabbitllm.utils import installed
from rabbitllm.utils.installed import mismatch, require_torch, version_of

SAID = (
    f"torch {version_of('torch')} is too old for transformers {transformers.__version__}: "
    "install a newer one (pip install --upgrade torch), or an older transformers."
)


@pytest.fixture
def too_old(monkeypatch):
    """Have transformers do without the torch that is installed, as it does if that is too old."""
    monkeypatch.setattr("transformers.utils.import_utils.is_torch_available", lambda: False)


def test_versions_are_read_without_importing():
    assert version_of("transformers") == transformers.__version__
    assert version_of("torch") == torch.__version__
    assert version_of("no-such-distribution") == ""


def test_what_goes_together_is_no_mismatch():
    assert mismatch() == ""
    require_torch()


def test_a_torch_that_transformers_does_without_is_named_with_the_way_out(too_old):
    assert mismatch() == SAID
    with pytest.raises(ImportError) as error:
        require_torch()
    assert str(error.value) == SAID


@pytest.mark.parametrize("name", ["AutoModel", "StreamedModel", "RabbitLLMLlama2"])
def test_every_class_of_the_package_says_so(too_old, name):
    with pytest.raises(ImportError, match="is too old for transformers"):
        getattr(rabbitllm, name)


def test_where_there_is_no_torch_at_all_its_own_import_says_so(too_old, monkeypatch):
    monkeypatch.setattr(installed, "version_of", lambda _: "")
    assert mismatch() == ""
