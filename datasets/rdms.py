"""The noun `RDMs`: a stack of representational dissimilarity matrices over one set of stimuli."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .errors import unknown
from .selection import select_rows

# Largest asymmetry or diagonal, relative to the largest entry, that counts as rounding of a stored matrix.
TOLERANCE = 1e-5


def n_pairs(n_stimuli: int) -> int:
    """Number of stimulus pairs."""
    return n_stimuli * (n_stimuli - 1) // 2


def n_stimuli_of(pairs: int) -> int:
    """Number of stimuli with `pairs` pairs, or 0 when there is no such number."""
    n = round((1 + np.sqrt(1 + 8 * pairs)) / 2)
    return int(n) if pairs > 0 and n_pairs(n) == pairs else 0


def pair_lookup(n_stimuli: int) -> np.ndarray:
    """Position of every pair in a dissimilarity vector, shape (stimulus, stimulus); 0 on the diagonal."""
    first, second = np.triu_indices(n_stimuli, 1)
    lookup = np.zeros((n_stimuli, n_stimuli), np.intp)
    lookup[first, second] = lookup[second, first] = np.arange(len(first))
    return lookup


def stimulus_positions(stimulus_ids: Sequence[str], wanted: Sequence[str], holder: str) -> np.ndarray:
    """Row of every wanted stimulus in `stimulus_ids`.

    Raises
    ------
    ValueError
        When `holder` (named in the message) lacks some of them: their number and the first ones.
    """
    position = {name: row for row, name in enumerate(stimulus_ids)}
    missing = [name for name in wanted if name not in position]
    if missing:
        shown = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        known = ", ".join(map(repr, list(stimulus_ids)[:3]))
        raise ValueError(
            f"{len(missing)} of {len(wanted)} stimulus ids are not in {holder}: {shown}. "
            f"Its {len(stimulus_ids)} ids begin with {known}; stimuli are joined by id, so give both sides "
            "the same ids."
        )
    return np.array([position[name] for name in wanted], np.intp)


class RDMs:
    """Stack of dissimilarity vectors over one set of stimuli.

    Parameters
    ----------
    vectors : array of shape (rdm, pair) or (pair,)
        Dissimilarities in the order of `scipy.spatial.distance.squareform`; NaN where a pair is unknown.
    stimulus_ids : sequence of str, length n_stimuli
        With ``n_stimuli * (n_stimuli - 1) / 2`` pairs.
    table : pandas.DataFrame, optional
        One row per RDM: subject, session, region, model, layer, kind, label, or what else tells them apart.
    method : str
        How the dissimilarities were computed.
    stimuli : StimulusSet, optional
        The stimuli themselves; only carried along.

    Attributes
    ----------
    vectors : array of shape (rdm, pair), read-only copy of the input
    stimulus_ids : list of str
    table : pandas.DataFrame
    method : str
    stimuli : StimulusSet or None
    """

    def __init__(
        self,
        vectors: np.ndarray,
        stimulus_ids: Sequence[str],
        table: pd.DataFrame | None = None,
        method: str = "",
        stimuli: Any = None,
    ) -> None:
        self.vectors = _checked_vectors(vectors)
        self.stimulus_ids = [str(name) for name in stimulus_ids]
        found, n = self.vectors.shape[1], len(self.stimulus_ids)
        if n < 2 or found != n_pairs(n):
            implied = n_stimuli_of(found)
            raise ValueError(
                f"vectors has {found} pairs for {n} stimulus_ids; {n} stimuli have {n_pairs(n)} pairs"
                + (f" and {found} pairs belong to {implied} stimuli." if implied else ".")
                + " Matrices (rdm, stimulus, stimulus) go through RDMs.from_matrices."
            )
        if len(set(self.stimulus_ids)) < n:
            twice = next(name for name in self.stimulus_ids if self.stimulus_ids.count(name) > 1)
            raise ValueError(f"stimulus_ids must be unique, but {twice!r} appears more than once.")
        if table is None:
            table = pd.DataFrame(index=range(len(self.vectors)))
        if len(table) != len(self.vectors):
            raise ValueError(f"table has {len(table)} rows for {len(self.vectors)} RDMs; give one row per RDM.")
        self.table = table.reset_index(drop=True).copy()
        self.method = method
        self.stimuli = stimuli

    @property
    def name(self) -> str:
        """Name of the dataset, which its stimuli know."""
        return str(getattr(self.stimuli, "name", ""))

    @classmethod
    def from_matrices(
        cls,
        matrices: np.ndarray,
        stimulus_ids: Sequence[str],
        table: pd.DataFrame | None = None,
        method: str = "",
        stimuli: Any = None,
    ) -> RDMs:
        """RDMs from square matrices.

        Parameters
        ----------
        matrices : array of shape (rdm, stimulus, stimulus) or (stimulus, stimulus)
            Symmetric, with zeros (or NaN) on the diagonal, both up to 1e-5 of the largest entry.

        Raises
        ------
        ValueError
            For matrices that are not square, not symmetric, or similarities (ones on the diagonal).
        """
        matrices = np.asarray(matrices)
        if matrices.ndim == 2:
            matrices = matrices[None]
        if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
            raise ValueError(
                f"matrices has shape {matrices.shape}; expected (rdm, stimulus, stimulus) or (stimulus, stimulus)."
            )
        if not np.issubdtype(matrices.dtype, np.floating):
            matrices = matrices.astype(np.float64)
        for k, matrix in enumerate(matrices):
            _check_matrix(matrix, k)
        first, second = np.triu_indices(matrices.shape[1], 1)
        return cls(matrices[:, first, second], stimulus_ids, table, method, stimuli)

    @classmethod
    def concatenate(cls, stacks: Iterable[RDMs]) -> RDMs:
        """One stack of several over the same stimuli, in the stimulus order of the first.

        Columns that a table lacks are filled with missing values; `method` is kept where all agree.

        Raises
        ------
        ValueError
            When there is nothing to stack, or the stimuli differ.
        """
        stacks = list(stacks)
        if not stacks:
            raise ValueError("concatenate needs at least one RDMs object, found none.")
        ids = stacks[0].stimulus_ids
        stacks = [on_stimuli(stack, ids, f"stacks[{k}]") for k, stack in enumerate(stacks)]
        methods = {stack.method for stack in stacks}
        return cls(
            np.concatenate([stack.vectors for stack in stacks]),
            ids,
            pd.concat([stack.table for stack in stacks], ignore_index=True),
            methods.pop() if len(methods) == 1 else "",
            next((stack.stimuli for stack in stacks if stack.stimuli is not None), None),
        )

    @property
    def n_stimuli(self) -> int:
        """Number of stimuli."""
        return len(self.stimulus_ids)

    @property
    def matrices(self) -> np.ndarray:
        """Symmetric matrices with a zero diagonal, shape (rdm, stimulus, stimulus); a new array."""
        n = self.n_stimuli
        matrices = np.zeros((len(self), n, n), self.vectors.dtype)
        first, second = np.triu_indices(n, 1)
        matrices[:, first, second] = matrices[:, second, first] = self.vectors
        return matrices

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[RDMs]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, rows: int | slice | Sequence | np.ndarray) -> RDMs:
        """The RDMs at `rows`: an integer, a slice, a boolean mask or an array of integers."""
        if isinstance(rows, (int, np.integer)) and not -len(self) <= rows < len(self):
            raise IndexError(f"RDM {rows} of a stack of {len(self)}")
        rows = np.atleast_1d(np.arange(len(self))[rows])
        return self._with(self.vectors[rows], self.table.iloc[rows])

    def __repr__(self) -> str:
        columns = ", ".join(map(str, self.table.columns))
        size = f"{len(self)} x {self.n_stimuli} stimuli"
        return f"RDMs({size}, method={self.method!r}, table: {columns or 'empty'})"

    def select(self, **columns: Any) -> RDMs:
        """The RDMs whose table holds these values, e.g. ``select(region="V1", subject=["s1", "s2"])``.

        Raises
        ------
        ValueError
            For a column or a value that the table does not have, with the nearest ones.
        """
        return self[select_rows(columns, {"RDMs": self.table})["RDMs"]]

    def mean(self, by: str | Sequence[str] | None = None) -> RDMs:
        """Average of all RDMs, or one average per value of a column (or combination of columns).

        A pair is averaged over the RDMs that know it, and is NaN where none does. The table keeps the
        columns that do not vary inside any average.
        """
        if by is None:
            groups = [np.arange(len(self))]
        else:
            by = [by] if isinstance(by, str) else list(by)
            keys = [self._column(column) for column in by]
            labels = self.table.groupby([key.to_numpy() for key in keys], sort=False, dropna=False).ngroup()
            groups = [np.flatnonzero(labels == k) for k in range(labels.max() + 1)]
        constant = [
            column
            for column in self.table
            if all(self.table[column].iloc[rows].nunique(dropna=False) == 1 for rows in groups)
        ]
        table = self.table[constant].iloc[[rows[0] for rows in groups]]
        return self._with(np.stack([_nan_mean(self.vectors[rows]) for rows in groups]), table)

    def reorder(self, stimulus_ids: Sequence[str]) -> RDMs:
        """The same RDMs over these stimuli, in this order: all of them, or a subset.

        Raises
        ------
        ValueError
            For ids that are not there.
        """
        wanted = [str(name) for name in stimulus_ids]
        if wanted == self.stimulus_ids:
            return self
        rows = stimulus_positions(self.stimulus_ids, wanted, "the RDMs")
        first, second = np.triu_indices(len(rows), 1)
        pairs = pair_lookup(self.n_stimuli)[rows[first], rows[second]]
        return RDMs(self.vectors[:, pairs], wanted, self.table, self.method, self.stimuli)

    def _with(self, vectors: np.ndarray, table: pd.DataFrame) -> RDMs:
        return RDMs(vectors, self.stimulus_ids, table, self.method, self.stimuli)

    def _column(self, column: str) -> pd.Series:
        if column not in self.table:
            raise ValueError(unknown("column", column, self.table.columns))
        return self.table[column]


def _checked_vectors(vectors: np.ndarray) -> np.ndarray:
    vectors = np.array(vectors)  # a copy, so that the caller's array stays the caller's
    if vectors.dtype.kind not in "fiub":
        raise ValueError(f"vectors has dtype {vectors.dtype}; expected real numbers.")
    if vectors.dtype not in (np.float32, np.float64):
        vectors = vectors.astype(np.float64)
    if vectors.ndim == 1:
        vectors = vectors[None]
    if vectors.ndim != 2:
        raise ValueError(
            f"vectors has shape {vectors.shape}; expected (rdm, pair). "
            "Matrices (rdm, stimulus, stimulus) go through RDMs.from_matrices."
        )
    if np.isinf(vectors).any():
        raise ValueError(
            f"vectors holds {np.isinf(vectors).sum()} infinite dissimilarities; write NaN for pairs that are unknown."
        )
    vectors.setflags(write=False)
    return vectors


def _check_matrix(matrix: np.ndarray, k: int) -> None:
    scale = np.nanmax(np.abs(matrix), initial=0.0)
    diagonal = np.diagonal(matrix)
    if np.allclose(diagonal, 1.0, atol=TOLERANCE):
        raise ValueError(
            f"matrix {k} has ones on its diagonal, so it is a similarity; pass 1 - matrix, or another dissimilarity."
        )
    if np.nanmax(np.abs(diagonal), initial=0.0) > TOLERANCE * scale:
        raise ValueError(
            f"matrix {k} has a diagonal up to {np.nanmax(np.abs(diagonal)):.3g}; the dissimilarity of a "
            "stimulus with itself is 0."
        )
    if (
        not np.array_equal(np.isnan(matrix), np.isnan(matrix.T))
        or np.nanmax(np.abs(matrix - matrix.T), initial=0.0) > TOLERANCE * scale
    ):
        raise ValueError(f"matrix {k} is not symmetric; average it with its transpose if both halves are measurements.")


def _nan_mean(vectors: np.ndarray) -> np.ndarray:
    known = ~np.isnan(vectors)
    total = np.where(known, vectors, 0).sum(0, dtype=np.float64)
    count = known.sum(0)
    mean = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return mean.astype(vectors.dtype)


def on_stimuli(rdms: RDMs, stimulus_ids: Sequence[str], name: str) -> RDMs:
    """`rdms` (called `name` in errors) in the order of `stimulus_ids`, which must be the same set."""
    found, expected = set(rdms.stimulus_ids), set(stimulus_ids)
    extra = [stimulus for stimulus in rdms.stimulus_ids if stimulus not in expected]
    missing = [stimulus for stimulus in stimulus_ids if stimulus not in found]
    if extra or missing:
        raise ValueError(
            f"{name} is over other stimuli: {len(missing)} ids are missing (first {missing[:3]}) and "
            f"{len(extra)} are extra (first {extra[:3]}); take the common ones with .reorder(ids)."
        )
    return rdms.reorder(stimulus_ids)
