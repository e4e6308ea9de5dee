import numpy as np
import pytest
import torch

from neuralign.encoders import products
from neuralign.encoders.products import product


def matrices(layout):
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(130, 300, generator=generator), torch.randn(300, 70, generator=generator)
    return {
        "plain": (A, B),
        "transposed": (A.T.contiguous().T, B.T.contiguous().T),
        "columns": (torch.randn(130, 900, generator=generator)[:, 300:600], torch.randn(300, 90)[:, 10:80]),
        "every other": (torch.randn(260, 600, generator=generator)[::2, ::2], torch.randn(600, 140)[::2, ::2]),
        "rows": (torch.randn(400, 300, generator=generator)[100:230], B),
    }[layout]


@pytest.mark.parametrize("layout", ["plain", "transposed", "columns", "every other", "rows"])
@pytest.mark.parametrize("there", [True, False])
def test_product_of_any_layout(layout, there, monkeypatch):
    if not there:
        monkeypatch.setattr(products, "_linear", lambda: None)
    A, B = matrices(layout)
    before = A.clone(), B.clone()
    found = product(A, B)
    assert found.shape == (130, 70) and found.dtype == torch.float32 and found.is_contiguous()
    np.testing.assert_allclose(found, (A.double() @ B.double()), atol=1e-4)
    assert torch.equal(A, before[0]) and torch.equal(B, before[1])


def test_a_product_is_new_memory():
    A, B = torch.ones(200, 200), torch.eye(200)
    found = product(A, B)
    found.zero_()
    assert A.sum() == 200**2 and B.sum() == 200


@pytest.mark.parametrize("shape", [(3, 4, 5), (0, 4, 5), (3, 0, 5), (2000, 1000, 0)])
def test_small_and_empty(shape):
    m, k, n = shape
    found = product(torch.ones(m, k), torch.ones(k, n))
    assert torch.equal(found, torch.full((m, n), float(k)))


def test_float64_stays():
    A = torch.randn(200, 200, dtype=torch.float64)
    assert torch.equal(product(A, A), A @ A)


def test_not_finite_stays_in_its_rows():
    A, B = torch.ones(200, 200), torch.ones(200, 200)
    A[3, 5], A[7, 5] = torch.nan, torch.inf
    found = product(A, B)
    assert found[3].isnan().all() and found[7].isinf().all() and int((~found.isfinite()).any(1).sum()) == 2
