"""One self-contained page that shows a table of scores and what stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..results import check_table, check_target, write_text
from ..score import Evidence


def report(results: pd.DataFrame | Sequence[Any], path: str | Path) -> Path:
    """Write results as one HTML page with figures, table and method; it needs no network and no other file.

    Parameters
    ----------
    results : pandas.DataFrame, RoutingMaps or sequence
        Tables from `align.score` and `align.rsa`, or from `align.load_results`, and beside them what
        `align.model_comparison`, `align.topology.identify` and ``AttentionRouter.routing`` return; routing maps may
        stand alone. They are drawn over pictures after ``maps.with_stimuli(stimuli)``. Figures of units, RDMs and
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
        Without routing maps and any table or row, for a table without the columns of `Score`, for maps of one cell,
        or if `path` is a folder.
    FileNotFoundError
        If the folder of `path` does not exist.
    """
    several = isinstance(results, list | tuple)
    given: list[Any] = list(results) if several else [results]
    beside = [found for found in map(_evidence, given) if found is not None]
    tables = [one for one in given if _evidence(one) is None]
    mapped = any(found.routing is not None for found in beside)
    if not tables and not mapped:
        found = "holds no table" if given else "is an empty list"
        raise ValueError(f"results {found}; give at least one table from align.score or align.rsa.")
    for k, one in enumerate(given):
        if _evidence(one) is None:
            check_table(one, f"results[{k}]" if several else "results")
    if not mapped and not any(len(table) for table in tables):
        raise ValueError("results has no rows; there is nothing to report.")
    path = check_target(path)

    from .page import render  # brings matplotlib and jinja2

    write_text(path, render(tables, beside))
    return path


def _evidence(one: Any) -> Evidence | None:
    """A comparison of models, an identification or routing maps as evidence without a table; None for all else."""
    if isinstance(one, pd.DataFrame):
        return None
    from ...encoders.routing.maps import RoutingMaps
    from ..inference import ModelComparison
    from ..topology import Identification

    if isinstance(one, RoutingMaps):
        if one.n_cells == 1:
            raise ValueError("results holds routing maps of one cell, which show nothing; extract with reduce=6, or so")
        return Evidence(routing=one)
    if isinstance(one, ModelComparison):
        return Evidence(comparison={"": one})
    return Evidence(identification=one) if isinstance(one, Identification) else None
