"""The sentences a reader can act on, first on the page."""

from __future__ import annotations

import pandas as pd

from harness.render.ranges import in_words
from harness.render.tables import Order, columns, exceptions, grid, releases, silent, together


def sentences(frame: pd.DataFrame, order: Order) -> list[str]:
    """Return one sentence for each backend: how many architectures pass, which do not."""
    everywhere = grid(frame)
    return [backend_sentence(everywhere, run_on) for run_on in columns(frame, order)]


def backend_sentence(everywhere: pd.DataFrame, run_on: str) -> str:
    """Return what one backend does on the releases that it ran on, `everywhere` being the grid."""
    axis = releases(everywhere[everywhere["run_on"] == run_on])
    part = everywhere[(everywhere["run_on"] == run_on) & (everywhere["status"] != "unsupported")]
    if silent(part["status"]).all():
        return f"{run_on}: nothing ran."
    whole = part["status"].eq("pass").groupby(part["architecture"]).all()
    said = f"{run_on}: {whole.sum()} of {len(whole)} architectures pass on {in_words(axis, axis)}"
    worse = together(
        (architecture, words + advice(everywhere, architecture, run_on, failing))
        for architecture, words, failing in exceptions(part, axis)
    )
    listed = "; ".join(f"{names} ({words})" for names, words in worse)
    return f"{said}. Not {listed}." if worse else f"{said}."


def advice(everywhere: pd.DataFrame, architecture: str, run_on: str, failing: pd.Series) -> str:
    """Return "; use eager" if another backend of the device passes on those releases, else ""."""
    _, device = run_on.rsplit(" on ", 1)
    others = everywhere[
        (everywhere["architecture"] == architecture)
        & everywhere["run_on"].str.endswith(f" on {device}")
        & everywhere["release"].isin(failing)
    ]
    works = others["status"].eq("pass").groupby(others["run_on"]).all()
    names = [name.rsplit(" on ", 1)[0] for name in works[works].index]
    return f"; use {' or '.join(names)}" if names else ""
