"""Ridge regression with a penalty for each unit, cross-validated or given."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from ..device import pick_device
from .assemble import Fit, fit_units
from .design import Map, RowMap, SpectralDesign
from .estimator import (
    AxisEncoder,
    NamedScore,
    SpectralEncoder,
    checked_alphas,
    checked_groups,
    checked_memory,
)
from .folds import Rows as FoldRows
from .folds import scored_folds
from .scale_out import runner
from .stream import Plan, Task, block_width, make_plan
from .weights import kept_weights, weight_store


class CrossValidated(NamedScore, AxisEncoder):
    """Encoders that find penalties by cross-validation over a `SpectralDesign`, which `design` makes."""

    _shared: tuple[str, ...] = ("fit_intercept", "nested")  # parameters that a design is made with

    def design(self, X, groups=None) -> SpectralDesign:
        """The side of the stimuli."""
        raise NotImplementedError

    def fit(self, X, Y, groups=None, executor=None, folder=None) -> Self:
        """Find the alpha of each unit by cross-validation, then its weights from all rows.

        Parameters
        ----------
        X : array, shape (stimulus, feature), or SpectralDesign
            Features, or what `design` takes in their place, or what it has made of them.
        Y : array, shape (stimulus, unit) or (stimulus,)
            Responses: an array, a memory map, a dataset of h5py, or a Recording whose rows are those of X. What is on
            disk is read once, by blocks of units.
        groups : array, shape (stimulus,), or None
            Run, session or repeat of each row, for folds of whole groups.
        executor : concurrent.futures.Executor, Dask client or the like, or None
            Computes blocks of units elsewhere, with the same numbers; see `scale_out.runner`.
        folder : path or None
            Where work in progress is kept, which all workers must see; an interrupted fit goes on from there.

        Returns
        -------
        The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range, X holds NaN or infinite values, Y holds infinite values or no unit
            without NaN, or lengths do not match.
        """
        score, alphas = self._checked_score(), checked_alphas(self.alphas)
        memory = checked_memory(self.max_memory)
        if Y is None:
            self._checked_responses(Y, 0)
        design = self._checked_design(X, groups) if isinstance(X, SpectralDesign) else self.design(X, groups)
        responses = self._checked_responses(Y, design.n)
        plan = self._plan(design, alphas, responses.v)
        task = Task(alphas, score, plan, bool(self.keep_scores), self.weights != "none")
        width = block_width(design, plan, len(alphas), memory)
        with weight_store(self.weights) as store, runner(executor, folder) as run:
            fit = fit_units(design, responses, task, width, per_unit=bool(self.per_unit), store=store, run=run)
            require_complete(fit, design.n)  # before a file of weights takes the place of an older one
        self._keep(design, fit, plan)
        self.alphas_ = alphas
        self.alpha_ = self._per_unit(np.where(fit.complete, alphas[fit.alpha], np.nan))
        self.cv_score_ = self._per_unit(fit.score)
        for name, wanted, values in (
            ("nested_score_", design.nested, fit.nested),
            ("cv_scores_", self.keep_scores, fit.surface),
        ):
            if wanted and values is not None:
                setattr(self, name, self._per_unit(values))
        self.edge_fraction_ = fit.edge_fraction
        for remark in remarks(fit, alphas):
            warnings.warn(remark, UserWarning, stacklevel=2)
        return self

    def _plan(self, design: SpectralDesign, alphas: np.ndarray, v: int) -> Plan:
        return make_plan(design, alphas, v)

    def _keep(self, design: SpectralDesign, fit: Fit, plan: Plan) -> None:
        keep_fit(self, design, fit, plan)

    def _folds(self, n: int, groups: Any) -> list[FoldRows]:
        """Training and test rows of the folds that hold enough rows for a score."""
        score, placeholder = self._checked_score(), np.empty((n, 1))
        return scored_folds(self.cv, placeholder, placeholder, checked_groups(groups, n), score)

    def _checked_nested(self, design: SpectralDesign) -> None:
        """Whether a design can answer for scores at penalties that are chosen without the fold they are scored on."""
        if not design.nested:
            return
        if not self.per_unit:
            raise ValueError(
                "nested=True with per_unit=False: nested scores are computed for a penalty of each unit alone; take "
                "per_unit=True, or score rows that are kept out of the fit"
            )
        if not any(trial.inner for layout in design.layouts for _, trials in layout.trains for trial in trials):
            raise ValueError(
                f"nested=True with {design.n_folds} folds: no fold leaves another to choose a penalty with; expected "
                "at least three folds that differ, as cv=3 gives"
            )

    def _checked_design(self, design: SpectralDesign, groups: Any) -> SpectralDesign:
        """A design made for the same question as this encoder asks."""
        if groups is not None:
            raise ValueError("groups and a design were given; the folds of a design are made: design(X, groups)")
        require_same(self, design, self._shared)
        self._checked_nested(design)
        return design


class RidgeCV(CrossValidated, SpectralEncoder):
    """Ridge regression from features to units, with the penalty of each unit found by cross-validation.

    For each unit, the weights b minimise ``||y - X b||^2 + alpha ||b||^2``; alpha carries no factor of the number of
    stimuli, and the intercept is not penalised. A fold learns offsets and scales from its training rows only.

    The stimuli are decomposed once per fold, and the units pass by in blocks, wherever they are kept; the cost of a
    unit hardly depends on how many alphas are tried.

    Parameters
    ----------
    alphas : array of float, shape (alpha,), or None
        Penalties to try, above zero. None takes 21 values from 1e-2 to 1e8, two per decade.
    cv : int, scikit-learn splitter, or iterable of (train, test)
        An int gives that many contiguous folds, or folds of whole groups where `fit` is given groups. Groups are
        handed on to a splitter; an iterable of rows decides alone.
    score : {"r", "r2"}
        What alpha maximises: the Pearson correlation or R^2, computed per fold and averaged over folds. A fold in
        which the responses, or for "r" the predictions, are constant is left out of a unit's average. One of fewer than
        three test rows, or for "r2" two, is left out altogether, with a warning.
    per_unit : bool
        One alpha for each unit; otherwise one alpha for all, the best on average over units.
    fit_intercept : bool
        Centre X and Y with the training rows.
    standardise : bool
        Scale the features to unit variance over the training rows; constant features stay as they are. `coef_` is in
        the features' own units all the same. A feature that hardly varies in training, such as a rectified channel
        that is nearly always silent, may then be huge in a test row, and its prediction too.
    nested : bool
        Also score each fold at the alpha that the other folds choose without it: `nested_score_`. Pairs of folds are
        left out for it, so that ``cv * (cv - 1) / 2`` more training sets are decomposed. A fold that nothing is left to
        choose for, as the first of a time series, is left out. Needs at least three folds, and `per_unit`.
    keep_scores : bool
        Keep the score of every alpha: `cv_scores_`.
    weights : {"memory", "none"} or path
        Where the weights go: memory; nowhere, when scores are all that is wanted; or a file ``.npy``, written as units
        pass by and read again in blocks.
    device : str
        Torch device; "auto" takes a CUDA device where there is one. The responses stay where they are and visit it
        block by block.
    max_memory : int or None
        Bytes of temporaries for each block of units, which bound its size; None is 1 GiB. Spectra of the folds come on
        top. Beyond rounding, the result does not depend on it.

    Attributes
    ----------
    alphas_ : ndarray, shape (alpha,)
        The alphas tried, ascending.
    alpha_ : ndarray, shape (unit,)
        The alpha of each unit, one of `alphas_`. Scores that only rounding can tell apart are ties, and ties go to
        the larger alpha.
    cv_score_ : ndarray, shape (unit,)
        Cross-validated score at `alpha_`. As a maximum over alphas it is a little optimistic.
    nested_score_ : ndarray, shape (unit,)
        Cross-validated score at alphas that were chosen without the fold they are scored on; with `nested`.
    cv_scores_ : ndarray, shape (alpha, unit)
        Cross-validated score at every alpha; with `keep_scores`.
    edge_fraction_ : float
        Fraction of the units without NaN whose score is best, and above zero, at an end of the alphas, by more than
        0.001 over the next alpha. Without `per_unit` it is the mean score over units that counts: 0 or 1.
    axes_ : ndarray, shape (feature, axis)
    weights_ : ndarray, shape (axis, unit), or None
        Principal axes of the stimuli and the weights along them; `coef_` is their product.
    coef_ : ndarray, shape (feature, unit)
        Weights, in the dtype of X; computed when asked for.
    intercept_ : ndarray, shape (unit,)
        Intercepts; zeros without `fit_intercept`.
    feature_mean_ : ndarray, shape (feature,)
    response_mean_ : ndarray, shape (unit,)
        Offsets taken out before the fit. `predict` uses them: ``X @ coef_ + intercept_`` is the same, but loses digits
        in float32 where features have large offsets.
    n_features_in_ : int
        Number of features.

    Notes
    -----
    A vector y makes `alpha_`, `cv_score_`, `intercept_` and `response_mean_` numbers, and drops the unit axis of the
    rest.

    Units of a two-dimensional Y that hold NaN are left out: their attributes and predictions are NaN. Constant units
    are predicted as their constant; they take the largest alpha and the score NaN. One warning counts each kind.

    The method ``score(X, y)`` shares its name with the parameter: reading the attribute gives the method,
    ``get_params()["score"]`` the parameter.

    References
    ----------
    Hoerl, A. E. & Kennard, R. W. (1970). Ridge regression: biased estimation for nonorthogonal problems.
    Technometrics 12, 55-67.

    Dupré la Tour, T., Eickenberg, M., Nunez-Elizalde, A. O. & Gallant, J. L. (2022). Feature-space selection with
    banded ridge regression. NeuroImage 264, 119728.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((100, 20))
    >>> Y = X @ rng.standard_normal((20, 3)) + rng.standard_normal((100, 3))
    >>> encoder = RidgeCV().fit(X, Y, groups=np.arange(100) // 10)
    >>> encoder.coef_.shape, encoder.predict(X).shape
    ((20, 3), (100, 3))
    """

    _shared = ("fit_intercept", "standardise", "nested")

    def __init__(
        self,
        alphas=None,
        cv=5,
        score="r",
        per_unit=True,
        fit_intercept=True,
        standardise=False,
        nested=False,
        keep_scores=False,
        weights="memory",
        device="auto",
        max_memory=None,
    ):
        self.alphas = alphas
        self.cv = cv
        self.score = score
        self.per_unit = per_unit
        self.fit_intercept = fit_intercept
        self.standardise = standardise
        self.nested = nested
        self.keep_scores = keep_scores
        self.weights = weights
        self.device = device
        self.max_memory = max_memory

    def design(self, X, groups=None) -> SpectralDesign:
        """The side of the stimuli, to be fitted to as many sets of responses as there are.

        Parameters
        ----------
        X : array, shape (stimulus, feature), or DelayedFeatures
            Features; float32 and float64 are kept, anything else becomes float64.
        groups : array, shape (stimulus,), or None
            Run, session or repeat of each row, for folds of whole groups.

        Returns
        -------
        SpectralDesign
            ``fit(design, Y)`` is ``fit(X, Y, groups)``.
        """
        X = self._checked_features(X)
        folds = self._folds(X.shape[0], groups)
        design = SpectralDesign(
            X,
            folds,
            fit_intercept=bool(self.fit_intercept),
            standardise=bool(self.standardise),
            nested=bool(self.nested),
            device=pick_device(self.device),
        )
        self._checked_nested(design)
        return design

    def _checked_design(self, design: SpectralDesign, groups: Any) -> SpectralDesign:
        design = super()._checked_design(design, groups)
        require_features(design)
        self.n_features_in_ = design.n_features
        return design


def require_same(encoder: Any, design: SpectralDesign, names: Sequence[str]) -> None:
    """Refuse a design made with other parameters than the encoder has."""
    for name in names:
        mine, its = bool(getattr(encoder, name)), getattr(design, name)
        if mine != its:
            raise ValueError(f"{name}={mine}, and the design was made with {name}={its}; make it with this encoder")


def require_features(design: SpectralDesign) -> None:
    """Refuse a design without features."""
    if design.matrix is None:
        raise ValueError("the design holds a kernel and no features; fit KernelRidgeCV to it")


def require_complete(fit: Fit, n: int) -> None:
    """Refuse responses of n rows that all hold NaN."""
    if not fit.complete.any():
        raise ValueError(
            f"every unit of Y (shape {(n, len(fit.complete))}) holds NaN; leave out the rows without responses"
        )


def keep_fit(encoder: Any, design: SpectralDesign, fit: Fit, plan: Plan) -> None:
    """What `predict` needs, as attributes."""
    to_axes = design.whole(plan.by_rows)[1]
    if isinstance(to_axes, Map | RowMap):
        encoder._to_axes = Map(to_axes.offset.cpu(), to_axes.axes.cpu()) if isinstance(to_axes, Map) else to_axes
        encoder.feature_mean_ = to_axes.offset.cpu().numpy()
    encoder.weights_ = kept_weights(encoder.weights, fit.weights)
    encoder._dtype = np.float32 if design.dtype.itemsize == 4 else np.float64
    encoder.response_mean_ = encoder._per_unit(fit.response_mean)


def missing(fit: Fit) -> Iterator[str]:
    """How many units are left out, if any are."""
    v, n_missing = len(fit.complete), int((~fit.complete).sum())
    if n_missing:
        yield f"{n_missing} of {v} units hold NaN in Y and are left out: weights and predictions are NaN"


def remarks(fit: Fit, alphas: np.ndarray) -> Iterator[str]:
    """What the user should know of the fit, one sentence for each kind of trouble."""
    yield from missing(fit)
    if fit.n_doubtful:
        yield (
            f"scores of {fit.n_doubtful} units were computed from predictions, because partial fractions disagreed "
            "with them on some; features far outside the range of the training rows can do that"
        )
    v, n_unscored = len(fit.complete), int(np.isnan(fit.score[fit.complete]).sum())
    if n_unscored:
        yield (
            f"{n_unscored} of {v} units have no cross-validated score, as their responses or predictions are "
            "constant in every fold: cv_score_ is NaN, alpha_ the largest of alphas"
        )
    at_edge = fit.edge_fraction
    if at_edge > 0.1:
        low, high = (fit.climbing & fit.complete).sum(1)
        end = "lower" if low > high else "upper"
        yield (
            f"{at_edge:.0%} of the chosen alphas lie at an end of the grid ({alphas[0]:g} to {alphas[-1]:g}), mostly "
            f"the {end}, where the cross-validated score still climbs; pass wider alphas"
        )


class Ridge(SpectralEncoder):
    """Ridge regression from features to units at penalties that are given.

    For each unit, the weights b minimise ``||y - X b||^2 + alpha ||b||^2``, as in `RidgeCV`; nothing is
    cross-validated. The stimuli are decomposed once, whatever the penalties, and the units pass by in blocks.

    Parameters
    ----------
    alpha : float or array of float, shape (unit,)
        Penalty above zero, of all units or of each. NaN stands for units that hold NaN, as in `RidgeCV.alpha_`.
    fit_intercept, standardise, device, max_memory
        See `RidgeCV`.
    weights : "memory" or path
        Where the weights go: memory, or a file ``.npy``, written as units pass by and read again in blocks.

    Attributes
    ----------
    axes_, weights_, coef_, intercept_, feature_mean_, response_mean_, n_features_in_
        See `RidgeCV`.

    Notes
    -----
    Units of a two-dimensional Y that hold NaN are left out, with one warning that counts them: their attributes and
    predictions are NaN. Constant units are predicted as their constant.

    References
    ----------
    Hoerl, A. E. & Kennard, R. W. (1970). Ridge regression: biased estimation for nonorthogonal problems.
    Technometrics 12, 55-67.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((100, 20))
    >>> Y = X @ rng.standard_normal((20, 3)) + rng.standard_normal((100, 3))
    >>> Ridge(alpha=[1.0, 10.0, 100.0]).fit(X, Y).coef_.shape
    (20, 3)
    """

    def __init__(
        self, alpha=1.0, fit_intercept=True, standardise=False, weights="memory", device="auto", max_memory=None
    ):
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.standardise = standardise
        self.weights = weights
        self.device = device
        self.max_memory = max_memory

    def fit(self, X, Y) -> Ridge:
        """Weights of each unit from all rows.

        Parameters
        ----------
        X : array, shape (stimulus, feature), or DelayedFeatures, or SpectralDesign
            Features, or what `RidgeCV.design` has made of them, whose folds are not used.
        Y : array, shape (stimulus, unit) or (stimulus,)
            Responses, as for `RidgeCV.fit`.

        Returns
        -------
        Ridge
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range, X holds NaN or infinite values, Y holds infinite values or no unit
            without NaN, or lengths do not match.
        """
        memory = checked_memory(self.max_memory)
        if isinstance(self.weights, str) and self.weights == "none":
            raise ValueError("weights='none': nothing would be left of this fit; expected 'memory' or a path")
        if Y is None:
            self._checked_responses(Y, 0)
        design = self._design(X)
        responses = self._checked_responses(Y, design.n)
        alpha = self._checked_alpha(responses.v)
        alphas = np.unique(alpha[~np.isnan(alpha)])
        index = np.minimum(np.searchsorted(alphas, alpha), len(alphas) - 1)
        plan = Plan("prediction", by_rows=True)
        task = Task(alphas, "r", plan, surface=False, weights=True)
        width = block_width(design, plan, 1, memory)
        with weight_store(self.weights) as store:
            fit = fit_units(design, responses, task, width, per_unit=True, index=index, store=store)
            require_complete(fit, design.n)
            unknown = np.flatnonzero(fit.complete & np.isnan(alpha))
            if unknown.size:
                raise ValueError(
                    f"alpha is NaN for {unknown.size} units that hold no NaN, unit {unknown[0]} first; "
                    "expected a finite number above zero for each of them"
                )
        keep_fit(self, design, fit, plan)
        for remark in missing(fit):
            warnings.warn(remark, UserWarning, stacklevel=2)
        return self

    def _design(self, X: Any) -> SpectralDesign:
        if isinstance(X, SpectralDesign):
            require_features(X)
            require_same(self, X, ("fit_intercept", "standardise"))
            self.n_features_in_ = X.n_features
            return X
        return SpectralDesign(
            self._checked_features(X),
            [],
            fit_intercept=bool(self.fit_intercept),
            standardise=bool(self.standardise),
            device=pick_device(self.device),
        )

    def _checked_alpha(self, v: int) -> np.ndarray:
        """The penalty of each unit."""
        try:
            alpha = np.asarray(self.alpha, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"alpha={self.alpha!r}: expected a number above zero, or one for each unit") from error
        if alpha.shape not in [(), (v,)]:
            raise ValueError(f"alpha has shape {alpha.shape}; expected one number, or shape ({v},), one for each unit")
        known = alpha[~np.isnan(alpha)]
        wrong = known[~(np.isfinite(known) & (known > 0))]
        if wrong.size or not known.size:
            raise ValueError(f"alpha holds {wrong[0] if wrong.size else np.nan:g}; expected finite numbers above zero")
        return np.broadcast_to(alpha, (v,))
