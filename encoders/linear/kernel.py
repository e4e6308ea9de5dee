"""Kernel ridge regression: rows are compared with each other by a kernel, and each unit has its own penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.utils import Tags
from torch import Tensor

from ...datasets.errors import unknown
from ..device import pick_device
from .assemble import Fit
from .design import KernelMap, SpectralDesign
from .estimator import checked_memory
from .folds import Rows as FoldRows
from .layout import layouts
from .matrix import add_outer, as_rows, mirrored, parts
from .ridge import CrossValidated, keep_fit
from .spectrum import EPSILON
from .stream import Plan, make_plan

KERNELS = ("linear", "poly", "rbf", "precomputed")
_NARROWEST = 64  # columns or rows of a block, whatever the memory: narrower products are slow and spare little


@dataclass(frozen=True)
class Kernel:
    """What two rows have in common.

    Attributes
    ----------
    name : {"linear", "poly", "rbf", "precomputed"}
    gamma : float
    degree : int
    coef0 : float
    offset : ndarray of float64, shape (column,), or None
        Taken from rows first, where the result does not depend on it but for its digits.
    """

    name: str
    gamma: float
    degree: int
    coef0: float
    offset: np.ndarray | None

    def __call__(self, A: np.ndarray, B: np.ndarray | None, device: torch.device, memory: int) -> Tensor:
        """Kernel of rows, float64, shape (row of A, row of B).

        Parameters
        ----------
        A : ndarray, shape (row, column)
        B : ndarray, shape (row, column), or None
            None compares A with itself, and the result is symmetric to the last digit.
        device : torch.device
        memory : int
            Bytes of temporaries.
        """
        n, m = len(A), len(A if B is None else B)
        kernel = torch.zeros(n, m, dtype=torch.float64, device=device)
        squares_A, squares_B = kernel.new_zeros(n, 1), kernel.new_zeros(m)
        for part in parts(A.shape[1], max(_NARROWEST, memory // (32 * (n + m)))):
            F = self._columns(A, part, device)
            squares_A += F.square().sum(1, keepdim=True)
            if B is None:
                add_outer(F.T, kernel)
                continue
            G = self._columns(B, part, device)
            squares_B += G.square().sum(1)
            kernel.addmm_(F, G.T)
        if B is None:
            kernel, squares_B = mirrored(kernel), squares_A[:, 0]
        if self.name == "poly":
            kernel.mul_(self.gamma).add_(self.coef0).pow_(self.degree)
            if not bool(torch.isfinite(kernel).all()):
                raise ValueError(
                    f"the kernel (gamma x'z + coef0)^degree leaves the range of numbers at gamma={self.gamma:g}, "
                    f"coef0={self.coef0:g}, degree={self.degree}; use a smaller gamma, or standardise X"
                )
        if self.name == "rbf":
            kernel = (squares_A + squares_B).sub_(kernel, alpha=2).clamp_(min=0)
            if B is None:
                kernel.fill_diagonal_(0)
            kernel.mul_(-self.gamma).exp_()
        return kernel

    def _columns(self, A: np.ndarray, part: slice, device: torch.device) -> Tensor:
        F = np.array(A[:, part], dtype=np.float64)
        if self.offset is not None:
            F -= self.offset[part]
        return torch.from_numpy(F).to(device)


class KernelDesign(SpectralDesign):
    """A `SpectralDesign` of a kernel, with what compares new rows to its own.

    Parameters
    ----------
    products : Tensor of float64, shape (stimulus, stimulus)
        The kernel of the rows; kept in the order that the folds like best.
    folds : list of (train, test)
        Row numbers.
    kernel : Kernel
        The function that `products` come from.
    X : ndarray, shape (stimulus, feature), or None
        The rows; None where the kernel was given.
    n_columns : int
        Columns of what the user gave.
    fit_intercept, nested, dtype
        See `SpectralDesign`.
    """

    def __init__(
        self,
        products: Tensor,
        folds: Sequence[FoldRows],
        *,
        kernel: Kernel,
        X: np.ndarray | None,
        n_columns: int,
        fit_intercept: bool,
        nested: bool,
        dtype: torch.dtype,
    ):
        cut = layouts(folds, len(products), nested)
        # Rows of an atom side by side are a slice, which copies nothing.
        order = np.concatenate(cut[0].atoms) if len(cut) == 1 else np.arange(len(products))
        position, rows = np.argsort(order), as_rows(order, products.device)
        super().__init__(
            None,
            [(position[train], position[test]) for train, test in folds],
            fit_intercept=fit_intercept,
            nested=nested,
            kernel=products[rows][:, rows],
            dtype=dtype,
        )
        self.order, self.kernel, self.X, self.n_columns = order, kernel, X, n_columns

    def has_negative_eigenvalues(self) -> bool:
        """Whether the kernel of all rows has eigenvalues below zero by more than rounding."""
        top, eigenvalues, _, constant = self.everything()
        positive = float(eigenvalues.sum() - (0.0 if constant is None else eigenvalues[constant]))
        assert self._kernel is not None
        trace = self._kernel.diagonal().sum()
        if self.fit_intercept:
            trace = trace - self._kernel.mean(0).sum()
        return positive - float(trace) / top > 8 * EPSILON * self.n


class KernelRidgeCV(CrossValidated):
    """Kernel ridge regression, with the penalty of each unit found by cross-validation.

    A kernel is an inner product in a space of features that need not be written down. For each unit, the weights b in
    that space minimise ``||y - F b||^2 + alpha ||b||^2`` with F the training rows there; the intercept is not
    penalised, which takes the mean over the training rows out of F and y. A fold learns from its training rows only.

    The kernel is computed once and decomposed once per fold, in float64; the units pass by in blocks, wherever they
    are kept, and the cost of a unit hardly depends on how many alphas are tried. With the linear kernel the result is
    that of `RidgeCV`, which is the faster of the two where there are fewer features than stimuli.

    Parameters
    ----------
    alphas, cv, score, per_unit, nested, keep_scores, weights, device
        See `RidgeCV`.
    kernel : {"linear", "poly", "rbf", "precomputed"}
        Of rows x and z: ``x'z``, ``(gamma x'z + coef0)^degree``, ``exp(-gamma ||x - z||^2)``, or what is passed in
        place of X: the kernel of the stimuli to `fit`, that of new with training stimuli to `predict`. "poly" depends
        on the origin of the features; with offsets that are large beside their spread, centre them first.
    gamma : float or None
        Above zero; None is ``1 / n_features``. For "poly" and "rbf".
    degree : int
        At least 1. For "poly".
    coef0 : float
        For "poly".
    fit_intercept : bool
        Centre the rows in the space of the kernel, and the responses, with the training rows.
    max_memory : int or None
        Bytes of temporaries for each block of units, and for each block of a kernel; None is 1 GiB. The kernel and
        the spectra of the folds come on top. Beyond rounding, the result does not depend on it.

    Attributes
    ----------
    alphas_, alpha_, cv_score_, nested_score_, cv_scores_, edge_fraction_
        See `RidgeCV`.
    axes_ : ndarray of float64, shape (train, axis)
    weights_ : ndarray, shape (axis, unit), or None
        Principal axes of the kernel, as combinations of training rows, and the weights along them.
    dual_coef_ : ndarray, shape (train, unit)
        Weights of the training rows, the product of the two, in the dtype of X; computed when asked for. They lie in
        the span of the axes: parts of ``(K + alpha)^-1 y`` along which the kernel is zero, and which predict nothing,
        are left out.
    response_mean_ : ndarray, shape (unit,)
        Mean over the training rows; zeros without `fit_intercept`.
    X_fit_ : ndarray, shape (train, feature), or None
        The training rows; None with a precomputed kernel.
    n_features_in_ : int
        Columns of X; of the kernel, if it is precomputed.

    Notes
    -----
    Units with NaN, constant units and vectors are treated as in `RidgeCV`.

    Negative eigenvalues, of a matrix that is no kernel, count as zero: in each fold those of its training rows, and in
    the final fit those of all rows. Neither alphas nor blocks of units change that.

    References
    ----------
    Saunders, C., Gammerman, A. & Vovk, V. (1998). Ridge regression learning algorithm in dual variables. ICML.

    Schölkopf, B., Smola, A. & Müller, K.-R. (1998). Nonlinear component analysis as a kernel eigenvalue problem.
    Neural Computation 10, 1299-1319.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((100, 4))
    >>> Y = np.sin(X @ rng.standard_normal((4, 3))) + 0.5 * rng.standard_normal((100, 3))
    >>> encoder = KernelRidgeCV(kernel="rbf").fit(X, Y)
    >>> encoder.dual_coef_.shape, encoder.predict(X).shape
    ((100, 3), (100, 3))
    """

    X_fit_: np.ndarray | None

    def __init__(
        self,
        alphas=None,
        kernel="linear",
        gamma=None,
        degree=3,
        coef0=1.0,
        cv=5,
        score="r",
        per_unit=True,
        fit_intercept=True,
        nested=False,
        keep_scores=False,
        weights="memory",
        device="auto",
        max_memory=None,
    ):
        self.alphas = alphas
        self.kernel = kernel
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.cv = cv
        self.score = score
        self.per_unit = per_unit
        self.fit_intercept = fit_intercept
        self.nested = nested
        self.keep_scores = keep_scores
        self.weights = weights
        self.device = device
        self.max_memory = max_memory

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.kernel == "precomputed"
        return tags

    @property
    def dual_coef_(self) -> np.ndarray:
        """Weights of the training rows, shape (train, unit); computed at every call."""
        return self._coefficients()

    def design(self, X, groups=None) -> KernelDesign:
        """The side of the stimuli, to be fitted to as many sets of responses as there are.

        Parameters
        ----------
        X : array, shape (stimulus, feature)
            Features, or the kernel (stimulus, stimulus) if it is precomputed; float32 and float64 are kept, anything
            else becomes float64.
        groups : array, shape (stimulus,), or None
            Run, session or repeat of each row, for folds of whole groups.

        Returns
        -------
        KernelDesign
            ``fit(design, Y)`` is ``fit(X, Y, groups)``.
        """
        gamma, degree, coef0 = self._checked_kernel()
        if hasattr(X, "project"):
            raise ValueError(f"X is a {type(X).__name__}; expected an array: RidgeCV takes features of other kinds")
        device, memory = pick_device(self.device), checked_memory(self.max_memory)
        X = self._checked_features(X)
        n, p = X.shape
        offset = None
        if self.kernel == "precomputed":
            products = torch.from_numpy(_symmetric(X)).to(device)
        folds = self._folds(n, groups)
        if self.kernel == "rbf" or (self.kernel == "linear" and self.fit_intercept):
            # The median of some rows is near the data, whatever a few rows hold.
            offset = np.median(X[np.linspace(0, n - 1, min(n, 101)).astype(int)], axis=0).astype(np.float64)
        kernel = Kernel(self.kernel, 1 / p if gamma is None else gamma, degree, coef0, offset)
        if self.kernel != "precomputed":
            products = kernel(X, None, device, memory)
        design = KernelDesign(
            products,
            folds,
            kernel=kernel,
            X=None if self.kernel == "precomputed" else X,
            n_columns=p,
            fit_intercept=bool(self.fit_intercept),
            nested=bool(self.nested),
            dtype=torch.float32 if X.dtype == np.float32 else torch.float64,
        )
        self._checked_nested(design)
        return design

    def _checked_kernel(self) -> tuple[float | None, int, float]:
        """gamma, degree and coef0."""
        if self.kernel not in list(KERNELS):
            raise ValueError(unknown("kernel", self.kernel, KERNELS))
        if self.gamma is not None and not (_is_number(self.gamma) and self.gamma > 0):
            raise ValueError(f"gamma={self.gamma!r}: expected a number above zero, or None for 1 / n_features")
        if not (_is_number(self.degree) and self.degree >= 1 and self.degree == int(self.degree)):
            raise ValueError(f"degree={self.degree!r}: expected a whole number, at least 1")
        if not _is_number(self.coef0):
            raise ValueError(f"coef0={self.coef0!r}: expected a finite number")
        return None if self.gamma is None else float(self.gamma), int(self.degree), float(self.coef0)

    def _checked_design(self, design: SpectralDesign, groups: Any) -> SpectralDesign:
        design = super()._checked_design(design, groups)
        if not isinstance(design, KernelDesign):
            raise ValueError("the design holds features and no kernel; fit RidgeCV to it")
        gamma, degree, coef0 = self._checked_kernel()
        mine = {"kernel": self.kernel}
        if self.kernel in ("poly", "rbf"):
            mine["gamma"] = 1 / design.n_columns if gamma is None else gamma
        if self.kernel == "poly":
            mine |= {"degree": degree, "coef0": coef0}
        for name, value in mine.items():
            its = getattr(design.kernel, "name" if name == "kernel" else name)
            if value != its:
                raise ValueError(f"{name}={value!r}, and the design was made with {its!r}; make it with this encoder")
        self.n_features_in_ = design.n_columns
        return design

    def _plan(self, design: SpectralDesign, alphas: np.ndarray, v: int) -> Plan:
        plan = make_plan(design, alphas, v)
        assert isinstance(design, KernelDesign)
        if plan.method == "held-out" and design.has_negative_eigenvalues():
            # What counts as zero among all rows is not what does in a fold, which must decide alone.
            return Plan("fractions", by_rows=True)
        return plan

    def _keep(self, design: SpectralDesign, fit: Fit, plan: Plan) -> None:
        keep_fit(self, design, fit, plan)
        to_axes = design.whole(by_rows=True)[1]
        assert isinstance(design, KernelDesign) and isinstance(to_axes, KernelMap)
        self.X_fit_, self._kernel = design.X, design.kernel
        given = np.argsort(design.order[np.concatenate(design.layouts[0].atoms)])  # back to the order of X
        self.axes_ = to_axes.projection.cpu().numpy()[given]
        self._mean = None if to_axes.mean is None else to_axes.mean.cpu().numpy()[given]

    def _coordinates(self, X: np.ndarray, device: torch.device, memory: int) -> Tensor:
        """New rows along the principal axes, in the dtype of the fit, shape (row, axis)."""
        to_axes = KernelMap(
            None if self._mean is None else torch.from_numpy(self._mean).to(device),
            torch.from_numpy(self.axes_).to(device),
        )
        n, rank = self.axes_.shape
        dtype = torch.float32 if self._dtype == np.float32 else torch.float64
        coordinates = torch.empty(len(X), rank, dtype=dtype, device=device)
        for rows in parts(len(X), max(_NARROWEST, memory // (64 * n))):
            if self.X_fit_ is None:
                products = torch.from_numpy(np.array(X[rows], dtype=np.float64)).to(device)
            else:
                products = self._kernel(X[rows], self.X_fit_, device, memory)
            coordinates[rows] = to_axes.coordinates(products).to(dtype)
        return coordinates

    def _checked_new(self, X: Any) -> Any:
        if hasattr(X, "project"):
            raise ValueError(f"X is a {type(X).__name__}; expected an array, as the fit had")
        return super()._checked_new(X)


def _is_number(value: Any) -> bool:
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return real and bool(np.isfinite(value))


def _symmetric(K: np.ndarray) -> np.ndarray:
    """A kernel in float64, symmetric to the last digit.

    Raises
    ------
    ValueError
        If it is not square, or not symmetric within what single precision leaves.
    """
    if K.shape[0] != K.shape[1]:
        raise ValueError(
            f"X has shape {K.shape}; with kernel='precomputed', expected a square kernel (stimulus, stimulus)"
        )
    both = K.astype(np.float64)
    apart = np.abs(both - both.T)
    i, j = np.unravel_index(apart.argmax(), apart.shape)
    if apart[i, j] > 1e-5 * np.abs(both).max():
        raise ValueError(
            f"the precomputed kernel is not symmetric: K[{i}, {j}] is {K[i, j]:g} and K[{j}, {i}] is {K[j, i]:g}; "
            "expected the kernel of the stimuli with themselves, in one order (for symmetry up to noise, (K + K.T) / 2)"
        )
    return (both + both.T) / 2
