"""Reductions beside scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn import decomposition
from sklearn.random_projection import SparseRandomProjection

from neuralign.encoders.features.pca import PCA
from neuralign.encoders.features.sketch import project


@pytest.mark.parametrize("n, width", [(60, 700), (400, 50)])
def test_principal_components(n, width):
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((n + 30, width)) * np.arange(1, width + 1) ** -0.5 + 2).astype(np.float32)
    theirs = decomposition.PCA(8, svd_solver="full").fit(rows[:n].astype(np.float64))
    ours = PCA(8, [str(i) for i in range(n)]).fitted(rows[:n])
    signs = np.sign((theirs.components_ * ours.basis[1:]).sum(1))
    np.testing.assert_allclose(ours.basis[1:], theirs.components_ * signs[:, None], atol=1e-4)
    np.testing.assert_allclose(ours(torch.from_numpy(rows)), theirs.transform(rows) * signs, atol=1e-4)
    assert ours.explained == pytest.approx(theirs.explained_variance_ratio_.sum(), rel=1e-5)


def test_random_projections_err_as_much_as_the_sparse_one():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((30, 20_000)).astype(np.float32)
    pairs = np.triu_indices(30, 1)
    truth = (rows @ rows.T)[pairs]

    def error(kept):
        return (((kept @ kept.T)[pairs] - truth) ** 2).mean() ** 0.5

    theirs = np.mean([error(SparseRandomProjection(500, random_state=s).fit_transform(rows)) for s in range(8)])
    for method in ("sketch", "sparse"):
        ours = np.mean([error(project(torch.from_numpy(rows), 500, s, False, method).numpy()) for s in range(8)])
        assert ours == pytest.approx(theirs, rel=0.1)
