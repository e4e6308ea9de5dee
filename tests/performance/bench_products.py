"""Products of float32 matrices by `encoders.products.product` and by torch (``make bench``)."""

import pytest
import torch

from neuralign.encoders.products import product


@pytest.mark.parametrize("m, k, n", [(2000, 2000, 512), (480, 480, 512), (1000, 4186, 1000)])
def bench_product(m, k, n, versus):
    A, B = torch.randn(m, k), torch.randn(k, n)
    versus(f"product {m} x {k} x {n}", lambda: product(A, B), lambda: A @ B, "torch.matmul", rounds=9)
