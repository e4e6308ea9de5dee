"""One self-contained page that shows a table of scores and what stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..results import check_table, check_target, write_text


def report(results: pd.DataFrame | Sequence[pd.DataFrame], path: str | Path) -> Path:
    """Write results as one HTML page with figures, table and method; it needs no network and no other file.

    Parameters
    ----------
    results : pandas.DataFrame or sequence of DataFrame
        Tables from `align.score` and `align.rsa`, or from `align.load_results`. Figures of units, RDMs and
        stimuli need the evidence in ``table.attrs["evidence"]``, which the ``.h5`` files of
        `align.save_results` keep and ``.csv`` and ``.json`` do not; what is missing is left out.
    path : str or Path
        The file to write; one that is there is replaced once the new one is whole.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    ValueError
        Without any table or row, for a table without the columns of `Score`, or if `path` is a folder.
    FileNotFoundError
        If the folder of `path` does not exist.
    """
    tables: list[Any] = list(results) if isinstance(results, list | tuple) else [results]
    if not tables:
        raise ValueError("results is an empty list; give at least one table from align.score or align.rsa.")
    for k, table in enumerate(tables):
        check_table(table, f"results[{k}]" if isinstance(results, list | tuple) else "results")
    if not any(len(table) for table in tables):
        raise ValueError("results has no rows; there is nothing to report.")
    path = check_target(path)

    from .page import render  # brings matplotlib and jinja2

    write_text(path, render(tables))
    return path
