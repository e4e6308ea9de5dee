"""Products of matrices at the rate of the hardware."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_LARGE = 2**20  # multiplications, from which on the call itself no longer counts


def product(A: Tensor, B: Tensor) -> Tensor:
    """``A @ B``; in float32 on a CPU by oneDNN, where it is there.

    torch multiplies matrices by MKL, which leaves the wide vector units of other makers' processors unused; the
    kernels of oneDNN, which torch brings along, reach twice its rate there and the same elsewhere
    (`tests/performance/bench_products.py`).

    Parameters
    ----------
    A : Tensor, shape (m, k)
    B : Tensor, shape (k, n)
        It, or its transpose, is copied unless contiguous.

    Returns
    -------
    Tensor, shape (m, n)
    """
    small = A.shape[0] * A.shape[1] * B.shape[1] < _LARGE
    if small or A.dtype != torch.float32 or B.dtype != torch.float32 or A.device.type != "cpu":
        return A @ B
    linear = _linear()
    if linear is None:
        return A @ B
    weight = B.T
    if not (weight.is_contiguous() or B.is_contiguous()):
        weight = weight.contiguous()
    if 1 not in A.stride():
        A = A.contiguous()
    return linear(A, weight, None, "none", [], "")


@cache
def _linear():
    """The operator that torch's compiler multiplies with, or None."""
    if not torch.backends.mkldnn.is_available():
        return None
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None:
        return None
    try:
        found = operator(torch.eye(2), torch.ones(3, 2), None, "none", [], "")
    except (RuntimeError, TypeError, NotImplementedError):  # of another version
        return None
    return operator if torch.equal(found, torch.ones(2, 3)) else None
