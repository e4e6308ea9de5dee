"""PoolingGridReadout against the plain search: field by field, penalty by penalty, fold by fold, unit by unit."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from neuralign.encoders.spatial.pooling_grid import PoolingGridReadout

ALPHAS = np.logspace(-1, 4, 6)
SIZES = (0.1, 0.3)

pytestmark = pytest.mark.filterwarnings("ignore:.*of the chosen alphas lie at an end of the grid")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def plain_fields(side, fine=200):
    """Masses of Gaussians by summing densities over a fine raster; the uniform field first, then large before small."""
    raster = (np.arange(side * fine) + 0.5) / (side * fine)
    masses = [np.full(side * side, 1 / side**2)]
    for size in sorted(SIZES, reverse=True):
        for y in (np.arange(side) + 0.5) / side:
            for x in (np.arange(side) + 0.5) / side:
                along = [np.exp(-((raster - c) ** 2) / (2 * size**2)).reshape(side, fine).sum(1) for c in (y, x)]
                mass = np.outer(*along).ravel()
                masses.append(mass / mass.sum())
    return masses


def plain_search(tokens, Y, masses, folds):
    """Mean r (field, alpha, unit) over folds, with a scaler and a regression for each."""
    table = np.zeros((len(masses), len(ALPHAS), Y.shape[1]))
    for k, mass in enumerate(masses):
        pooled = sum(mass[t] * tokens[:, t] for t in range(tokens.shape[1]))
        for train, test in folds:
            scaler = StandardScaler().fit(pooled[train])
            for a, alpha in enumerate(ALPHAS):
                predicted = Ridge(alpha).fit(scaler.transform(pooled[train]), Y[train])
                predicted = predicted.predict(scaler.transform(pooled[test]))
                for v in range(Y.shape[1]):
                    table[k, a, v] += np.corrcoef(predicted[:, v], Y[test, v])[0, 1] / len(folds)
    return table


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_the_plain_search(dtype):
    rng = np.random.default_rng(0)
    n, side, d, v = 80, 4, 6, 8
    tokens = rng.standard_normal((n, side * side, d)) * rng.uniform(0.5, 3, d) + 2
    tokens[:16] *= 5  # the first fold: scales taken from its test rows would show
    masses = plain_fields(side)
    planted = rng.integers(0, len(masses), v)
    Y = np.einsum("vt,ntd,vd->nv", np.array(masses)[planted], tokens, rng.standard_normal((v, d)))
    Y += Y.std(0) * rng.standard_normal(Y.shape)
    tokens = tokens.astype(dtype)

    table = plain_search(tokens.astype(np.float64), Y, masses, list(KFold(5).split(tokens)))
    best = table.reshape(-1, v).argmax(0)
    field, alpha = best // len(ALPHAS), ALPHAS[best % len(ALPHAS)]
    assert len(set(field)) > 3

    found = PoolingGridReadout(sizes=SIZES, alphas=ALPHAS, grid=(side, side)).fit(tokens, Y)
    np.testing.assert_array_equal(found.field_, field)
    np.testing.assert_array_equal(found.alpha_, alpha)
    np.testing.assert_allclose(found.cv_score_, table.reshape(-1, v).max(0), atol=2e-5)  # the raster's error
    for unit in range(v):
        np.testing.assert_allclose(found.receptive_field(unit).ravel(), masses[field[unit]], atol=1e-5)
        pooled = np.einsum("t,ntd->nd", masses[field[unit]], tokens)
        scaled = StandardScaler().fit_transform(pooled)
        expected = Ridge(alpha[unit]).fit(scaled, Y[:, unit]).predict(scaled)
        np.testing.assert_allclose(found.predict(tokens)[:, unit], expected, atol=1e-4 * np.ptp(expected))
