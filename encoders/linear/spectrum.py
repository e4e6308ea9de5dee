"""Training rows along their principal axes, and test rows met with them.

With F the features of the training rows, less their mean, the eigenvalues and axes of F'F (or of FF', where
there are more features than rows) turn ridge regression at every penalty into a sum over axes:
``prediction = T diag(1 / (l + alpha)) b`` with T the test rows and ``b = C' y`` the training rows, both in
coordinates of the axes. Everything here is on the side of the stimuli and computed in float64; responses come in
`sweep`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Axes:
    """Principal axes of some training rows, eigenvalues divided by the largest.

    Attributes
    ----------
    top : float
        Largest eigenvalue; 1 if the rows hold nothing but zeros.
    eigenvalues : Tensor of float64, shape (axis,)
        Ascending, between 0 and 1; those that rounding cannot tell from zero are left out.
    vectors : Tensor of float64, shape (feature, axis) or (train, axis)
        Orthonormal.
    """

    top: float
    eigenvalues: Tensor
    vectors: Tensor


def principal_axes(product: Tensor, n: int) -> Axes:
    """Eigenvectors of a Gram matrix or kernel.

    Parameters
    ----------
    product : Tensor of float64, shape (k, k)
        Symmetric. Negative eigenvalues, of a kernel that is not one, count as zero.
    n : int
        The larger dimension of what was multiplied, which scales the rounding.
    """
    eigenvalues, vectors = torch.linalg.eigh(product)
    top = float(eigenvalues[-1]) if len(eigenvalues) else 0.0
    keep = eigenvalues > EPSILON * max(n, len(product)) * max(top, 0.0)
    top = top if top > 0 else 1.0
    eigenvalues = eigenvalues[keep] / top
    for same in clusters(eigenvalues):
        eigenvalues[same] = eigenvalues[same].mean()
    return Axes(top, eigenvalues, vectors[:, keep])


def clusters(eigenvalues: Tensor) -> list[slice]:
    """Runs of eigenvalues, two or more, that are equal but for rounding."""
    values = eigenvalues.cpu()
    joined = torch.diff(values) <= 1e-8 * values[1:] + 1e-15
    found, start = [], None
    for i, same in enumerate([*joined.tolist(), False]):
        if same and start is None:
            start = i
        elif not same and start is not None:
            found.append(slice(start, i + 1))
            start = None
    return found


@dataclass(frozen=True)
class Quadratic:
    """The power of predictions at every penalty, without predictions.

    With d = 1 / (l + alpha) and G = T'T, the power is ``sum_ij d_i d_j G_ij b_i b_j``. Because
    ``d_i d_j = (d_i - d_j) / (l_j - l_i)``, the sum over pairs is ``2 sum_i d_i b_i e_i`` with ``e = M b`` and
    ``M_ij = G_ij / (l_j - l_i)``, which knows no penalty. Axes of one eigenvalue are turned until G is diagonal
    among them, so that nothing is ever divided by the difference of equal numbers.

    M is antisymmetric, so that ``sum_i b_i e_i`` is zero and any number k may be taken from all d:
    ``2 sum_i (d_i - k) b_i e_i`` is the same sum, and with k among the d it is free of the large terms that cancel
    (`Penalties`). What is left of rounding is that of e, and mostly float32 holds it.

    Attributes
    ----------
    diagonal : Tensor of float64, shape (axis,)
        Of G, after the turns.
    partial : Tensor, shape (axis, axis)
        M, zero on the diagonal and among axes of one eigenvalue, in the dtype of the features.
    terms : Tensor of float64, shape (axis,)
        Expected square of ``b_i e_i`` where responses are white.
    turns : tuple of (slice, Tensor)
        Axes of one eigenvalue, and the rotation that coordinates of training and test rows take.
    """

    diagonal: Tensor
    partial: Tensor
    terms: Tensor
    turns: tuple[tuple[slice, Tensor], ...]

    def turned(self, b: Tensor) -> Tensor:
        """Coordinates (axis, unit) after the turns; `b` itself where there are none."""
        if self.turns:
            b = b.clone()
            for axes, turn in self.turns:
                b[axes] = turn.T.to(b.dtype) @ b[axes]
        return b


class Penalties:
    """What each penalty makes of each axis, of size 1 for large ones: ``(1 + alpha) / (l + alpha)``.

    Attributes
    ----------
    shrunk : Tensor of float64, shape (alpha, axis)
    differences : Tensor of float64, shape (alpha, axis)
        `shrunk` less one of its values, between axes; the one that leaves the rounding of partial fractions least.
    sizes : Tensor of float64, shape (alpha, 1)
        ``1 / (1 + alpha)``, the factor that `shrunk` lacks.
    rounding : float
        Error of the power of predictions, relative to it, at the worst penalty, where responses are white, in units of
        the rounding of e.
    """

    def __init__(self, eigenvalues: Tensor, relative: Tensor, form: Quadratic):
        relative = relative[:, None]
        self.sizes = 1 / (1 + relative)
        inverse = 1 / (eigenvalues + relative)
        self.shrunk = (1 + relative) * inverse
        weights = form.terms * inverse
        total = weights.sum(1, keepdim=True)
        centre = torch.where(total > 0, (weights @ eigenvalues[:, None]) / total, 0.0)
        # d - k with k = 1 / (centre + alpha), without the difference of nearly equal numbers.
        self.differences = (centre - eigenvalues) * self.shrunk * ((1 + relative) / (centre + relative))
        error = 2 * (self.differences.square() @ form.terms).sqrt()
        power = self.shrunk.square() @ (form.diagonal * eigenvalues)
        self.rounding = float(torch.where(power > 0, error / power, 0.0).amax()) if len(relative) else 0.0


def quadratic(eigenvalues: Tensor, test: Tensor, dtype: torch.dtype) -> Quadratic:
    """Partial fractions of the power; `test` (test, axis), float64, is turned in place."""
    turns = []
    for axes in clusters(eigenvalues):
        part = test[:, axes]
        turn = torch.linalg.eigh(part.T @ part)[1]
        test[:, axes] = part @ turn
        turns.append((axes, turn))
    partial = fractions(eigenvalues, test)
    terms = eigenvalues * (partial.square() @ eigenvalues)
    return Quadratic(test.square().sum(0), partial.to(dtype), terms, tuple(turns))


def fractions(eigenvalues: Tensor, test: Tensor) -> Tensor:
    """M of `Quadratic`, float64, from test rows (test, axis) that have taken its turns."""
    gaps = eigenvalues[None, :] - eigenvalues[:, None]
    gaps.fill_diagonal_(torch.inf)
    for axes in clusters(eigenvalues):
        gaps[axes, axes] = torch.inf
    return torch.div(test.T @ test, gaps, out=gaps)
