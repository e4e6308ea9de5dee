"""Finite impulse responses: features at several delays, as an operator that never holds the delayed copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..device import pick_device
from .matrix import add_outer, mirrored, parts

Rows = slice | Tensor  # row numbers

_CELLS = 2**23  # values held in float64 at once: 64 MiB
_ROWS = 256  # but at least as many rows, or products would wait for memory

Coefficients = TypeVar("Coefficients", np.ndarray, Tensor)


@dataclass(frozen=True)
class Delays:
    """Delays from a feature to the responses that it drives, in samples.

    A response at sample t is predicted from the features at ``t - delay``, for each delay: positive delays look
    back, as the haemodynamic response does, and negative delays look ahead. Together with a ridge regression this is
    the finite impulse response model of fMRI and the temporal response function of EEG.

    Parameters
    ----------
    samples : sequence of int
        Distinct delays, in samples (TRs). They need not follow each other, but evenly spaced ascending ones are much
        faster where there are more samples than columns. `from_seconds` converts.

    Raises
    ------
    ValueError
        If there is no delay, one comes twice, or one is not a whole number.

    Notes
    -----
    Columns come delay by delay: all features at the first delay, then all at the second. `by_delay` splits weights.

    References
    ----------
    Dale, A. M. (1999). Optimal experimental design for event-related fMRI. Human Brain Mapping 8, 109-114.

    Huth, A. G., de Heer, W. A., Griffiths, T. L., Theunissen, F. E. & Gallant, J. L. (2016). Natural speech reveals
    the semantic maps that tile human cerebral cortex. Nature 532, 453-458.

    Examples
    --------
    >>> import numpy as np
    >>> Delays([0, 1]).apply(np.array([[1.0], [2.0], [6.0], [8.0]]), runs=[1, 1, 2, 2], centre=False).dense()
    array([[1., 0.],
           [2., 1.],
           [6., 0.],
           [8., 6.]])
    """

    samples: Sequence[int]

    def __post_init__(self) -> None:
        delays = np.asarray(self.samples)
        if delays.ndim != 1 or delays.size == 0:
            raise ValueError(f"delays={self.samples!r}: expected a sequence of at least one delay, as in [1, 2, 3, 4]")
        if delays.dtype.kind not in "iu":
            raise ValueError(
                f"delays={self.samples!r:.80}: expected whole numbers of samples; "
                "Delays.from_seconds(first, last, tr) converts seconds"
            )
        values, counts = np.unique(delays, return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"delays hold {values[counts > 1][0]} more than once; leave out the repetition")
        object.__setattr__(self, "samples", tuple(int(d) for d in delays))

    def __len__(self) -> int:
        return len(self.samples)

    @classmethod
    def from_seconds(cls, first: float, last: float, tr: float) -> Delays:
        """All delays of whole samples between two times, both included.

        Parameters
        ----------
        first, last : float
            Delays in seconds.
        tr : float
            Time from one sample to the next in seconds: the repetition time, or one over the sampling rate.

        Raises
        ------
        ValueError
            If `tr` is not above zero, or no whole sample lies between `first` and `last`.

        Examples
        --------
        >>> Delays.from_seconds(2, 8, tr=2)
        Delays(samples=(1, 2, 3, 4))
        >>> Delays.from_seconds(-0.02, 0.03, tr=1 / 100)
        Delays(samples=(-2, -1, 0, 1, 2, 3))
        """
        if not 0 < tr < np.inf:
            raise ValueError(f"tr={tr!r}: expected seconds from one sample to the next, above zero")
        if not -np.inf < first <= last < np.inf:
            raise ValueError(f"first={first!r} and last={last!r}: expected seconds, the first not after the last")
        slack = 1e-6  # samples: 0.3 / 0.1 is a little less than 3
        samples = range(int(np.ceil(first / tr - slack)), int(np.floor(last / tr + slack)) + 1)
        if not samples:
            raise ValueError(f"no whole sample of {tr:g} s lies between first={first:g} s and last={last:g} s")
        return cls(tuple(samples))

    def apply(
        self,
        X: Any,
        runs: Any = None,
        *,
        centre: bool = True,
        offset: Any = None,
        order: Any = None,
        device: Any = "auto",
    ) -> DelayedFeatures:
        """Features at all delays, none of them from another run.

        Parameters
        ----------
        X : array or Tensor, shape (sample, feature)
            Features in the order of time; float32 and float64 are kept, anything else becomes float64.
        runs : array, shape (sample,), or None
            Run of each sample. The samples of a run follow each other. None is one run.
        centre : bool
            Take the mean over all samples from each feature first. A sample before the start of a run, or after its
            end, then counts as the mean; otherwise it counts as zero.
        offset : array, shape (feature,) or (column,), or None
            What to take from each feature instead of its mean: for new data, the `offset` of the training data.
        order : array of int, shape (sample,), or None
            Samples in the order in which the result is to have its rows. Time and runs are those of X all the same.
        device : str
            Torch device; "auto" takes a CUDA device where there is one.

        Returns
        -------
        DelayedFeatures
            Holds one copy of X.

        Raises
        ------
        ValueError
            If X is not a table of finite numbers, or `runs`, `offset` or `order` do not fit it.
        """
        if not isinstance(X, Tensor):
            X = np.asarray(X)
        if X.ndim != 2 or 0 in X.shape:
            raise ValueError(f"X has shape {tuple(X.shape)}; expected (sample, feature), at least one of each")
        n, p = X.shape
        starts, stops = _bounds(runs, n)
        if not centre and offset is not None:
            raise ValueError("centre=False comes with an offset, which would be taken from X; leave out one of the two")
        where = pick_device(device)
        mean = _means(X).to(where)
        if offset is not None:
            mean = _checked_offset(offset, p, len(self)).to(where)
        elif not centre:
            mean = torch.zeros_like(mean)
        dtype = torch.float32 if str(X.dtype).endswith("float32") else torch.float64
        features = torch.empty(n + 1, p, dtype=dtype, device=where)
        for part in parts(n, _CELLS // p):
            features[part] = (_double(X[part]).to(where) - mean).to(dtype)
        features[n] = 0  # what lies outside a run
        return DelayedFeatures(self, features, starts.to(where), stops.to(where), mean, _checked_order(order, n))

    def by_delay(self, coef: Coefficients) -> Coefficients:
        """Weights of columns as weights of delays and features.

        Parameters
        ----------
        coef : ndarray or Tensor, shape (column, ...)

        Returns
        -------
        ndarray or Tensor, shape (delay, feature, ...)

        Raises
        ------
        ValueError
            If the number of columns is no multiple of the number of delays.
        """
        if coef.ndim == 0 or len(coef) % len(self):
            raise ValueError(
                f"coef has shape {tuple(coef.shape)}; expected (column, ...), with as many columns at each of the "
                f"{len(self)} delays"
            )
        return coef.reshape((len(self), len(coef) // len(self), *coef.shape[1:]))


class DelayedFeatures:
    """Features at several delays, (sample, delay x feature), read without the delayed copies.

    Made by `Delays.apply`. Products are formed from a few rows at a time. Over stretches of samples, such as whole
    runs, the Gram matrix of evenly spaced delays repeats itself along its diagonals but for the ends of the stretches
    (it is block-Toeplitz), so that it costs one product for each delay instead of one for each pair. The kernel is
    the sum over delays of one kernel, shifted, and costs no more products than that of the features without delays.

    Attributes
    ----------
    delays : Delays
    offset : Tensor of float64, shape (column,)
        What was taken from each column before it was delayed.
    """

    def __init__(
        self, delays: Delays, features: Tensor, starts: Tensor, stops: Tensor, mean: Tensor, order: Tensor | None
    ):
        self.delays = delays
        self.offset = mean.repeat(len(delays))
        self._features = features  # (sample + 1, feature); the last row is zero
        self._starts, self._stops = starts, stops  # of the run of each sample
        self._reordered = order is not None
        self._times = torch.arange(len(starts)) if order is None else order  # sample of each row
        self._times = self._times.to(features.device)
        self._lags = torch.tensor(delays.samples, device=features.device)

    def __repr__(self) -> str:
        n, p, runs = self.shape[0], self._features.shape[1], len(torch.unique(self._starts))
        return f"DelayedFeatures({n} samples in {runs} runs, {len(self.delays)} delays x {p} features, {self.dtype})"

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples and of columns."""
        return len(self._times), len(self.delays) * self._features.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the features, float32 or float64."""
        return self._features.dtype

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self._features.device

    def dense(self) -> np.ndarray:
        """The delayed copies, less `offset`, shape (sample, column): for small data and other encoders."""
        return torch.cat([F for _, F in self._blocks(slice(None), self.dtype)]).cpu().numpy()

    def gram(self, rows: Rows, mean: Tensor | None = None) -> Tensor:
        """Sum over rows of x x', or of (x - mean) (x - mean)', float64, shape (column, column)."""
        total = self._gram(rows)
        if mean is not None:
            cross = torch.outer(self.sums(rows), mean)
            total += self._count(rows) * torch.outer(mean, mean) - cross - cross.T
        return total

    def _gram(self, rows: Rows) -> Tensor:
        C, p = self.shape[1], self._features.shape[1]
        total = torch.zeros(C, C, dtype=torch.float64, device=self.device)
        ends = self._ends(self._times[self._on_device(rows)])
        if not ends:
            for _, F in self._blocks(rows, torch.float64):
                add_outer(F, total)
            return mirrored(total)
        # One step along a diagonal of blocks moves each stretch one step back in time: samples enter before its
        # start and leave at its end.
        for _, F in self._blocks(rows, torch.float64):
            total[:p].addmm_(F[:, :p].T, F)
        for sign, (times, inside) in ends.items():
            for part in parts(len(times), self._height):
                F = self._block(self._source(times[part], inside[part]), torch.float64)
                for i in range(p, C, p):
                    total[i : i + p, i:].addmm_(F[:, i - p : i].T, F[:, i - p : C - p], alpha=sign)
        for i in range(p, C, p):
            total[i : i + p, i:] += total[i - p : i, i - p : C - p]
        return mirrored(total)

    def kernel(self, scale: Tensor | None = None) -> Tensor:
        """Inner products of all rows, float64, shape (sample, sample); columns divided by `scale` first.

        Two matrices of this shape are held. With `scale`, which need not be the same at all delays, there is one
        product of the features for each delay.
        """
        n = self.shape[0]
        scales = None if scale is None else self.delays.by_delay(scale)
        total = torch.zeros(n, n, dtype=torch.float64, device=self.device)
        time = torch.arange(n, device=self.device)
        runs = torch.unique(torch.stack([self._starts, self._stops]), dim=1).T.tolist()
        for d, lag in enumerate(self.delays.samples):
            if scales is not None or d == 0:
                undelayed = self._undelayed(None if scales is None else scales[d])
            inside = ((time - lag >= self._starts) & (time - lag < self._stops)).double()
            first, last = max(lag, 0), n + min(lag, 0)
            for start, stop in runs:
                begin, end = start + max(lag, 0), stop + min(lag, 0)
                if begin < end:
                    total[begin:end, first:last].addcmul_(
                        undelayed[begin - lag : end - lag, first - lag : last - lag], inside[first:last]
                    )
        return total[self._times][:, self._times] if self._reordered else total

    def sums(self, rows: Rows) -> Tensor:
        """Sum over rows, float64, shape (column,)."""
        return self._weighted_sum(self._uses(rows), power=1)

    def squares(self, rows: Rows, mean: Tensor) -> Tensor:
        """Sum over rows of squared distances from `mean`, float64, shape (column,)."""
        total = self._weighted_sum(self._uses(rows), power=2)
        return (total + mean * (self._count(rows) * mean - 2 * self.sums(rows))).clamp(min=0)

    def _count(self, rows: Rows) -> int:
        """How many rows these are."""
        return len(range(*rows.indices(self.shape[0]))) if isinstance(rows, slice) else len(rows)

    def varying(self, rows: Rows) -> Tensor:
        """Which columns are not constant over these rows."""
        result = []
        for used in self._uses(rows) > 0:
            samples = used.nonzero()[:, 0]
            low = high = self._features[samples[0]]
            for part in parts(len(samples), _CELLS // self._features.shape[1]):
                F = self._features[samples[part]]
                low, high = torch.minimum(low, F.amin(0)), torch.maximum(high, F.amax(0))
            result.append(low != high)
        return torch.cat(result)

    def cross(self, rows: Rows, Y: Tensor) -> Tensor:
        """X' Y over some rows, in the dtype of X, shape (column, unit); Y has a row for each of `rows`."""
        total = torch.zeros(self.shape[1], Y.shape[1], dtype=self.dtype, device=self.device)
        for part, F in self._blocks(rows, self.dtype):
            total.addmm_(F.T, Y[part])
        return total

    def project(self, rows: Rows, V: Tensor) -> Tensor:
        """X V for some rows, float64, shape (row, axis); V is float64, shape (column, axis)."""
        return torch.cat([F @ V for _, F in self._blocks(rows, torch.float64)])

    def combine(self, W: Tensor) -> Tensor:
        """X' W over all rows, float64, shape (column, axis)."""
        total = torch.zeros(self.shape[1], W.shape[1], dtype=torch.float64, device=self.device)
        for part, F in self._blocks(slice(None), torch.float64):
            total.addmm_(F.T, W[part].double())
        return total

    @property
    def _height(self) -> int:
        """Rows that are delayed at once."""
        return max(_ROWS, _CELLS // self.shape[1])

    def _on_device(self, rows: Rows) -> Rows:
        return rows if isinstance(rows, slice) else rows.to(self.device)

    def _source(self, times: Tensor, inside: Tensor) -> Tensor:
        """Which row of `_features` each delay reads, (time, delay).

        A time is read as belonging to the run of the sample `inside`; it need not lie in the run itself.
        """
        source = times[:, None] - self._lags
        known = (source >= self._starts[inside, None]) & (source < self._stops[inside, None])
        return torch.where(known, source, len(self._starts))

    def _block(self, source: Tensor, dtype: torch.dtype) -> Tensor:
        """Delayed features, (time, column)."""
        return self._features.index_select(0, source.reshape(-1)).reshape(len(source), -1).to(dtype)

    def _blocks(self, rows: Rows, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Delayed features of some rows, as many at a time as memory likes, and where they stand among the rows."""
        times = self._times[self._on_device(rows)]
        for part in parts(len(times), self._height):
            yield part, self._block(self._source(times[part], times[part]), dtype)

    def _uses(self, rows: Rows) -> Tensor:
        """How often each delay reads each row of `_features` for these rows, float64, (delay, sample + 1)."""
        uses = torch.zeros(len(self.delays), len(self._features), dtype=torch.float64, device=self.device)
        times = self._times[self._on_device(rows)]
        for part in parts(len(times), _CELLS // len(self.delays)):
            source = self._source(times[part], times[part]).T
            uses.scatter_add_(1, source, torch.ones_like(source, dtype=torch.float64))
        return uses

    def _weighted_sum(self, uses: Tensor, power: int) -> Tensor:
        total = torch.zeros(len(uses), self._features.shape[1], dtype=torch.float64, device=self.device)
        for part in parts(len(self._features), _CELLS // self._features.shape[1]):
            total.addmm_(uses[:, part], self._features[part].double() ** power)
        return total.reshape(-1)

    def _undelayed(self, scale: Tensor | None) -> Tensor:
        """Kernel of the features without delays, in the order of time."""
        n = self.shape[0]
        total = torch.zeros(n, n, dtype=torch.float64, device=self.device)
        for part in parts(self._features.shape[1], max(_ROWS, _CELLS // n)):
            F = self._features[:n, part].double()
            add_outer((F if scale is None else F / scale[part]).T, total)
        return mirrored(total)

    def _ends(self, times: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """What enters (1) and what leaves (-1) where stretches of samples move one step back in time.

        For each, the times, and a sample of the run that they are to be read in. Empty where the delays are not
        evenly spaced, or the stretches so short that their ends cost as much as they save.
        """
        steps = set(np.diff(self.delays.samples).tolist())
        step = steps.pop() if len(steps) == 1 else 0
        times = times.sort().values
        gaps = torch.diff(times)
        if step < 1 or not len(times) or (gaps == 0).any():
            return {}
        cut = (gaps > 1) | (torch.diff(self._starts[times]) != 0)
        edge = torch.ones(1, dtype=torch.bool, device=self.device)
        first, last = times[torch.cat([edge, cut])], times[torch.cat([cut, edge])]
        if 4 * step * len(first) > len(times):
            return {}
        back = torch.arange(step, device=self.device)
        inside = first.repeat_interleave(step)
        return {
            1: ((first[:, None] - 1 - back).reshape(-1), inside),
            -1: ((last[:, None] - back).reshape(-1), inside),
        }


def _double(X: np.ndarray | Tensor) -> Tensor:
    return X.double() if isinstance(X, Tensor) else torch.from_numpy(np.array(X, dtype=np.float64, order="C"))


def _means(X: np.ndarray | Tensor) -> Tensor:
    """Mean of each feature; of a constant one its very value, so that it is zero when centred, as outside a run."""
    n, p = X.shape
    low = high = _double(X[:1])[0]
    total = torch.zeros_like(low)
    for part in parts(n, _CELLS // p):
        F = _double(X[part])
        total += F.sum(0)
        low, high = torch.minimum(low, F.amin(0)), torch.maximum(high, F.amax(0))
    wrong = int((~torch.isfinite(low) | ~torch.isfinite(high)).sum())
    if wrong:
        raise ValueError(f"{wrong} of {p} features of X hold NaN or infinite values; mend them or leave them out")
    return torch.where(low == high, low, total / n)


def _bounds(runs: Any, n: int) -> tuple[Tensor, Tensor]:
    """First sample of the run of each sample, and the sample after its last."""
    labels = np.zeros(n, dtype=int) if runs is None else np.asarray(runs)
    if labels.shape != (n,):
        raise ValueError(f"runs has shape {labels.shape}; expected ({n},), one label for each row of X")
    first = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]]))
    names, pieces = np.unique(labels[first], return_counts=True)
    if (pieces > 1).any():
        raise ValueError(
            f"runs: run {names[pieces > 1][0]!s} comes in several pieces; expected the samples of a run to follow each "
            "other: sort the rows, or give each piece a label of its own"
        )
    lengths = np.diff(np.append(first, n))
    return torch.from_numpy(np.repeat(first, lengths)), torch.from_numpy(np.repeat(first + lengths, lengths))


def _checked_offset(offset: Any, p: int, n_delays: int) -> Tensor:
    """Offset of each feature, from that or the offset of each column."""
    values = _double(offset if isinstance(offset, Tensor) else np.asarray(offset, dtype=np.float64))
    if values.shape not in [(p,), (p * n_delays,)]:
        raise ValueError(
            f"offset has shape {tuple(values.shape)}; expected ({p},), a number for each feature, or "
            f"({p * n_delays},), the offset of delayed features"
        )
    if not torch.isfinite(values).all():
        raise ValueError("offset holds NaN or infinite values; expected finite numbers")
    if (values.reshape(-1, p) != values[:p]).any():
        raise ValueError("offset differs between the delays of a feature; expected the same at all of them")
    return values[:p].clone()


def _checked_order(order: Any, n: int) -> Tensor | None:
    if order is None:
        return None
    samples = np.asarray(order)
    if samples.shape != (n,) or samples.dtype.kind not in "iu" or not np.array_equal(np.sort(samples), np.arange(n)):
        raise ValueError(f"order (shape {samples.shape}): expected each of the {n} samples of X once")
    return torch.from_numpy(samples.astype(np.int64))
