"""Which measures there are, what each of them promises, and how a name becomes a number."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...datasets.errors import unknown

HERE = Path(__file__).parent

# Module that registers each measure; importing it is what makes the card known.
_HOMES = {
    "cka": "cka",
    "cka-debiased": "cka",
    "cka-debiased-units": "cka",
    "cka-rbf": "cka",
    "cka-rbf-debiased": "cka",
    "cca": "canonical",
    "svcca": "canonical",
    "pwcca": "canonical",
    "distance-correlation": "distance_correlation",
    "distance-correlation-debiased": "distance_correlation",
    "procrustes": "shape",
    "shape": "shape",
    "bures": "shape",
    "permutation": "shape",
    "soft-matching": "matching",
    "bipartite-matching": "matching",
    "semi-matching": "matching",
    "sparse-prediction": "matching",
    "mutual-knn": "neighbours",
    "gdv": "separability",
    "kernel-analysis": "kernel_analysis",
    "ssm": "ssm",
}

# What a change of one representation may be, and what it includes: x is a row (stimulus), a column a feature.
INVARIANCES: dict[str, tuple[str, ...]] = {
    "permutation": (),  # features in another order
    "orthogonal": ("permutation",),  # x Q, Q'Q = I
    "isotropic-scaling": (),  # c x, one c > 0
    "feature-scaling": ("isotropic-scaling",),  # every feature by its own factor > 0
    "pattern-scaling": ("isotropic-scaling",),  # every stimulus by its own factor > 0
    "shift-all": (),  # x + c, one c for all features
    "translation": ("shift-all",),  # x + b, one b for all stimuli
    "affine": ("orthogonal", "permutation", "isotropic-scaling", "feature-scaling", "translation", "shift-all"),
}

# How a value becomes a distance, for measures that are a metric in that form.
DISTANCES: dict[str, Callable[[float], float]] = {
    "value": lambda value: value,
    "one-minus": lambda value: 1 - value,
    "arccos": lambda value: float(np.arccos(np.clip(value, -1, 1))),
    "arccos-square": lambda value: float(np.arccos(np.clip(value * value, -1, 1))),
}

# Rounding may carry a value this far past the end of its range; it is brought back.
ROUNDING = 1e-9


def _no_similarity(n_stimuli: int) -> float:
    return 0.0


@dataclass(frozen=True)
class SimilarityCard:
    """What a measure is and what it promises; a test holds every measure to every promise.

    Attributes
    ----------
    name, title : str
    formula : str
        For X (stimulus, feature p) and Y (stimulus, feature q) with n stimuli; c marks columns centred.
    citation : str
    low, high : float
        Values never leave this range.
    larger_is_more_similar : bool
    symmetric : bool
        The value does not change when X and Y change places.
    metric : bool
        The value, taken through `distance`, obeys the triangle inequality (0 for equal representations).
    distance : str
        A key of `DISTANCES`: the form in which it is a metric; empty where there is none.
    biased : bool
        On independent representations its mean lies on the similar side of `chance`, the further the fewer
        stimuli there are for the features.
    unbiased_form : str
        What to use instead of a biased measure: another measure's name, or "cross-validate" (fit on some
        stimuli, score on others: `estimator`).
    invariances : frozenset of str
        Keys of `INVARIANCES`: changes of X alone, or of Y alone, under which the value stays. What a change
        includes is added: "orthogonal" brings "permutation". For an asymmetric measure, those of both sides.
    fits : bool
        `estimator` offers it with `fit` on some stimuli and `score` on others.
    kind : str
        "pair": Y is another representation; "separability": Y holds one class label per stimulus.
    fewest_stimuli : int
    chance : callable
        Mean over independent representations of n stimuli, at default options.
    """

    name: str
    title: str
    formula: str
    citation: str
    low: float
    high: float
    larger_is_more_similar: bool
    symmetric: bool
    metric: bool
    biased: bool
    unbiased_form: str = ""
    invariances: frozenset[str] = frozenset()
    fits: bool = False
    distance: str = ""
    kind: str = "pair"
    fewest_stimuli: int = 3
    chance: Callable[[int], float] = _no_similarity

    def __post_init__(self) -> None:
        for name in self.invariances:
            if name not in INVARIANCES:
                raise ValueError(unknown("invariances", name, INVARIANCES))
        included = {also for name in self.invariances for also in INVARIANCES[name]}
        object.__setattr__(self, "invariances", frozenset(self.invariances) | included)
        if self.kind not in ("pair", "separability"):
            raise ValueError(unknown("kind", self.kind, ("pair", "separability")))
        if self.metric != (self.distance in DISTANCES):
            raise ValueError(
                f"the card of {self.name!r} has metric={self.metric} and distance={self.distance!r}; a metric names "
                f"one of {', '.join(DISTANCES)}, any other measure leaves distance empty."
            )
        if self.biased != bool(self.unbiased_form):
            raise ValueError(
                f"the card of {self.name!r} has biased={self.biased} and unbiased_form={self.unbiased_form!r}; a "
                'biased measure names another one or "cross-validate", an unbiased one names none.'
            )
        if self.unbiased_form == "cross-validate" and not self.fits:
            raise ValueError(f"the card of {self.name!r} offers cross-validation, but fits is False.")


Measure = Callable[..., float]
_REGISTERED: dict[str, tuple[SimilarityCard, Measure, type | None]] = {}


def measure(card: SimilarityCard, estimator: type | None = None) -> Callable[[Measure], Measure]:
    """Decorator that makes a function ``f(X, Y, **options) -> float`` known under its card's name.

    The function receives what `prepared` returns, and is not called for a representation without variance:
    that is NaN with a warning. Its own undefined cases go through `undefined`.

    Parameters
    ----------
    card : SimilarityCard
    estimator : class, optional
        Takes the options; has ``fit(X, Y)`` and ``score(X, Y)``. Needed where ``card.fits``.

    Raises
    ------
    ValueError
        Another function has that name, or the card and the estimator do not agree.
    """
    if card.fits != (estimator is not None):
        raise ValueError(f"the card of {card.name!r} says fits={card.fits}, the estimator is {estimator}.")

    def decorate(function: Measure) -> Measure:
        taken = _REGISTERED.get(card.name)
        home = (function.__module__, function.__qualname__)
        if taken is not None and (taken[1].__module__, taken[1].__qualname__) != home:
            raise ValueError(f"measure {card.name!r} is registered twice: by {taken[1].__module__} already.")

        @functools.wraps(function)
        def checked(X: Any, Y: Any, **options: Any) -> float:
            X, Y = prepared(X, Y, card.name, card)
            sides = {"X": X, "Y": Y} if card.kind == "pair" else {"X": X}
            still = [name for name, side in sides.items() if not np.ptp(side, axis=0).any()]
            if still:
                verb = "do" if len(still) > 1 else "does"
                return undefined(card.name, f"{' and '.join(still)} {verb} not vary over stimuli")
            return _in_range(float(function(X, Y, **options)), card)

        _REGISTERED[card.name] = (card, checked, estimator)
        return checked

    return decorate


def similarity(name: str, X: Any, Y: Any, **options: Any) -> float:
    """How similar two representations of the same stimuli are.

    Parameters
    ----------
    name : str
        One of ``measures().index``; ``card(name)`` holds formula, range, invariances and bias.
    X, Y : arrays of shape (stimulus, feature) or (stimulus, token, feature)
        Rows are the same stimuli in the same order; the numbers of features may differ. Numpy arrays, torch
        tensors and data frames, computed in float64. For a measure of kind "separability", Y holds one class
        label per stimulus.
    **options
        Of the measure, see its docstring.

    Returns
    -------
    float
        NaN, with a warning that says why, where the measure is not defined.

    Raises
    ------
    ValueError
        For an unknown name or option, other stimuli on the two sides, too few of them, or values that are
        not finite.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(20, 5))
    >>> round(similarity("cka", X, 3 * X[:, ::-1] + 1), 6)
    1.0
    """
    function = _entry(name)[1]
    _check_options(name, function, options)
    return function(X, Y, **options)


def card(name: str) -> SimilarityCard:
    """The card of a measure."""
    return _entry(name)[0]


def estimator(name: str, **options: Any) -> Any:
    """A measure in two steps: ``fit(X, Y)`` on some stimuli, ``score(X, Y)`` on others.

    Raises
    ------
    ValueError
        For an unknown name or option, and for a measure that fits nothing.
    """
    found = _entry(name)[2]
    if found is None:
        fitting = [other for other in _names() if _entry(other)[0].fits]
        raise ValueError(f"{name!r} fits nothing, so it has no estimator; these do: {', '.join(fitting)}.")
    _check_options(name, found, options)
    return found(**options)


def measures() -> pd.DataFrame:
    """Every measure and its flags, one row per name."""
    columns = ["title", "kind", "low", "high", "larger_is_more_similar", "symmetric", "metric", "biased"]
    columns += ["unbiased_form", "fits"]
    rows = []
    for name in _names():
        one = _entry(name)[0]
        flags = {column: getattr(one, column) for column in columns}
        rows.append({"name": name, **flags, "invariances": ", ".join(sorted(one.invariances))})
    return pd.DataFrame(rows).set_index("name")


def prepared(X: Any, Y: Any, name: str, card: SimilarityCard | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Both sides checked: float64 of shape (stimulus, feature), not centred; for "separability", Y the labels.

    Raises
    ------
    ValueError
        Names the side, what was found and what `name` expects.
    """
    card = card or _entry(name)[0]
    X = _representation(X, "X")
    Y = _labels(Y) if card.kind == "separability" else _representation(Y, "Y")
    if len(X) != len(Y):
        raise ValueError(
            f"X has {len(X)} stimuli and Y {len(Y)}; both must hold the same stimuli in the same order, in rows."
        )
    if len(X) < card.fewest_stimuli:
        raise ValueError(f"X and Y have {len(X)} stimuli; {name!r} needs at least {card.fewest_stimuli}.")
    return X, Y


def prepared_as_fitted(X: Any, Y: Any, name: str, widths: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """`prepared`, for stimuli that were not fitted: both sides have the numbers of features that `fit` saw."""
    X, Y = prepared(X, Y, name)
    for label, side, width in (("X", X, widths[0]), ("Y", Y, widths[1])):
        if side.shape[1] != width:
            raise ValueError(f"{label} has {side.shape[1]} features; fit saw {width}, and score needs the same ones.")
    return X, Y


def centred(X: np.ndarray) -> np.ndarray:
    """X (stimulus, feature) less the mean of every feature; exactly zero where a feature is constant.

    Without the exact zero, what rounding leaves of a constant feature would count as signal. The second pass
    takes away the error of the first mean, which is not small beside the signal where an offset is large.
    """
    moved = X - X.mean(0)
    moved -= moved.mean(0)
    moved[:, np.ptp(X, axis=0) == 0] = 0
    return moved


def undefined(name: str, why: str) -> float:
    """NaN, with one warning at the caller's line that says why a measure has no value."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and Path(frame.f_code.co_filename).parent == HERE:
        frame, level = frame.f_back, level + 1
    warnings.warn(f"{name!r} is NaN: {why}.", stacklevel=level + 1)
    return float("nan")


def _names() -> list[str]:
    return list(dict.fromkeys([*_HOMES, *_REGISTERED]))


def _entry(name: str) -> tuple[SimilarityCard, Measure, type | None]:
    if name not in _REGISTERED:
        if name not in _HOMES:
            raise ValueError(unknown("name", name, _names()))
        import_module(f".{_HOMES[name]}", __package__)
    return _REGISTERED[name]


def _check_options(name: str, target: Callable[..., Any], options: dict[str, Any]) -> None:
    known = [key for key in inspect.signature(target).parameters if key not in ("X", "Y")]
    for key in options:
        if key not in known:
            raise ValueError(unknown("option", key, known, f"These are the options of {name!r}."))


def _in_range(value: float, card: SimilarityCard) -> float:
    if card.low - ROUNDING <= value <= card.high + ROUNDING:
        return min(max(value, card.low), card.high)
    return value


def _representation(values: Any, name: str) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor, perhaps with a gradient or on another device
        values = values.detach().cpu()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} has dtype {array.dtype}; expected real numbers.")
    if array.ndim == 3:
        array = array.reshape(len(array), -1)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(
            f"{name} has shape {array.shape}; expected (stimulus, feature) or (stimulus, token, feature), with at "
            "least one feature. A single feature is values[:, None]."
        )
    array = np.asarray(array, dtype=np.float64)
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise ValueError(
            f"{name} holds {bad} values of {array.size} that are NaN or infinite; leave those stimuli or features out "
            "on this side (and the stimuli on the other), or fill them, before comparing."
        )
    return array


def _labels(values: Any) -> np.ndarray:
    labels = np.asarray(values)
    if labels.ndim != 1:
        raise ValueError(f"Y has shape {labels.shape}; expected one class label per stimulus.")
    if pd.isna(labels).any():
        raise ValueError(f"Y holds {int(pd.isna(labels).sum())} missing labels; leave those stimuli out.")
    if len(pd.unique(labels)) < 2:
        raise ValueError("Y holds a single class; separability needs at least two.")
    return labels
