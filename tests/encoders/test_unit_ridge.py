from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from neuralign.encoders.spatial import unit_ridge as module
from neuralign.encoders.spatial.losses import checked_loss
from neuralign.encoders.spatial.tokens import checked_tokens
from neuralign.encoders.spatial.unit_ridge import best_places, masked_ridge, pooled_start, unit_ridge

ALPHAS = np.logspace(-2, 4, 7)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def slow_ridge(X, y, known, training, alphas):
    """One unit: scikit-learn's ridge for every penalty, on standardised columns."""
    train, rest = known & training, known & ~training

    def fitted(rows, alpha):
        mean, std = X[rows].mean(0), X[rows].std(0)
        std = np.where(std > 0, std, 1)
        ridge = Ridge(alpha=alpha).fit((X[rows] - mean) / std, y[rows])
        return ridge.coef_ / std, ridge.intercept_ - (ridge.coef_ / std) @ mean

    def r(alpha):
        weights, intercept = fitted(train, alpha)
        return np.corrcoef(X[rest] @ weights + intercept, y[rest])[0, 1]

    scores = np.array([r(alpha) for alpha in alphas])
    best = len(alphas) - 1 - np.argmax(scores[::-1])
    return *fitted(known, alphas[best]), scores[best], alphas[best]


def drawn(v=4, n=40, d=6, missing=0.0, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((v, n, d)) * rng.uniform(0.5, 5, d) + 3
    Y = np.einsum("vnd,vd->nv", X, rng.standard_normal((v, d))) + 4 * rng.standard_normal((n, v))
    known = rng.random((n, v)) >= missing
    return X, np.where(known, Y, 0.0), known, np.arange(n) % 4 > 0


@pytest.mark.parametrize("d", [6, 60])
@pytest.mark.parametrize("missing", [0.0, 0.25])
def test_each_unit_is_ridge_on_its_own_features(d, missing):
    X, Y, known, training = drawn(d=d, missing=missing)
    X[1, :, 2] = 7.0  # constant
    tensors = [torch.from_numpy(values) for values in (X, Y, known, training)]
    found = unit_ridge(*tensors, ALPHAS)
    for unit in range(4):
        expected = slow_ridge(X[unit], Y[:, unit], known[:, unit], training, ALPHAS)
        weights, intercept, r, alpha = expected
        np.testing.assert_allclose(found.weights[unit], weights, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(found.intercept[unit], intercept, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(found.r[unit], r, rtol=1e-9)
        assert found.alpha[unit] == alpha
    assert len(set(found.alpha.tolist())) > 1  # penalties are chosen, not the same for all


def test_ties_go_to_the_larger_penalty_and_what_is_constant_has_no_score():
    rng = np.random.default_rng(0)
    X = torch.from_numpy(rng.standard_normal((2, 30, 1)))
    Y = torch.from_numpy(np.stack([X[0, :, 0].numpy() + 1, rng.standard_normal(30)], 1))
    training = torch.arange(30) < 20
    Y[~training, 1] = 3.0
    found = unit_ridge(X, Y, torch.ones(30, 2, dtype=torch.bool), training, ALPHAS)
    assert found.alpha[0] == ALPHAS[-1]  # one feature: every penalty predicts r = 1
    assert float(found.r[0]) == pytest.approx(1) and found.r[1].isnan()


def a_setup(loss="mse", missing=0.0, n=60, grid=(2, 3), d=4, v=3, seed=0):
    """As much of a setup as closed forms read."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, grid[0] * grid[1], d)).astype("f4") * 2 + 5
    W = rng.standard_normal((d, v))
    Y = (X[:, 1] @ W + X.mean(1) @ W) / 4 + 0.5 * rng.standard_normal((n, v))
    counts = rng.poisson(np.log1p(np.exp(Y - Y.mean(0)))).astype(float)
    Y = counts if loss == "poisson" else (Y - Y.mean(0)) / Y.std(0)
    known = rng.random((n, v)) >= missing
    tokens = checked_tokens(X, grid)
    rows = rng.permutation(n)
    train_rows, validation_rows = np.sort(rows[:45]), np.sort(rows[45:55])
    mean, std = tokens.moments(train_rows)
    return SimpleNamespace(
        tokens=tokens,
        standard=(torch.from_numpy(mean).float(), torch.from_numpy(std).float()),
        Y=torch.from_numpy(np.where(known, Y, 0.0)).float(),
        known=torch.from_numpy(known) if missing else None,
        train_rows=train_rows,
        validation_rows=validation_rows,
        n_tokens=tokens.n_tokens,
        n_features=d,
        n_units=v,
        bias=checked_loss(loss).start(Y.mean(0)),
        loss=checked_loss(loss),
        device=torch.device("cpu"),
    )


def standardised(setup):
    mean, std = (values.numpy() for values in setup.standard)
    return (setup.tokens.array - mean) / std


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_masked_ridge_reads_tokens_through_each_units_mask(monkeypatch, one_at_a_time):
    setup = a_setup(missing=0.1)
    masks = torch.from_numpy(np.random.default_rng(1).random((3, 6))).float()
    if one_at_a_time:
        monkeypatch.setattr(module, "CHUNK", 1)
    found = masked_ridge(masks, setup)
    rows = np.union1d(setup.train_rows, setup.validation_rows)
    training = np.isin(rows, setup.train_rows)
    x = standardised(setup)[rows]
    for unit in range(3):
        features = np.einsum("t,ntd->nd", masks[unit].numpy(), x).astype(np.float64)
        y, known = setup.Y[rows, unit].double().numpy(), setup.known[rows, unit].numpy()
        alphas = np.logspace(-2, 8, 21)
        weights, intercept, r, alpha = slow_ridge(features, y, known, training, alphas)
        np.testing.assert_allclose(found.weights[unit], weights, atol=1e-5)
        np.testing.assert_allclose(found.intercept[unit], intercept, atol=1e-5)
        assert float(found.r[unit]) == pytest.approx(r, abs=1e-5)
        assert float(found.alpha[unit]) == pytest.approx(alpha)


def test_training_starts_at_ridge_on_the_mean_token_of_the_training_rows():
    setup = a_setup()
    found = pooled_start(setup).numpy()
    pooled = standardised(setup).mean(1).astype(np.float64)
    Y, train, rest = setup.Y.double().numpy(), setup.train_rows, setup.validation_rows
    spread = pooled[train].std(0)
    for unit in range(3):
        everything = np.isin(np.arange(60), np.union1d(train, rest))
        *_, alpha = slow_ridge(pooled, Y[:, unit], everything, np.isin(np.arange(60), train), np.logspace(-2, 8, 21))
        centred = (pooled[train] - pooled[train].mean(0)) / spread
        ridge = Ridge(alpha=min(alpha, len(train))).fit(centred, Y[train, unit])
        np.testing.assert_allclose(found[unit], ridge.coef_ / spread, atol=1e-4)


def test_a_start_on_counts_has_the_slope_of_the_link():
    setup = a_setup("poisson")
    found = pooled_start(setup)
    pooled = torch.from_numpy(standardised(setup).mean(1))
    small = 1e-3 * pooled[setup.train_rows] @ found.T
    rates = setup.loss.link(setup.bias + small)
    start = setup.loss.link(setup.bias)
    setup.loss = checked_loss("mse")  # the same counts, without a link
    straight = 1e-3 * pooled[setup.train_rows] @ pooled_start(setup).T
    np.testing.assert_allclose((rates - start).numpy(), straight.numpy(), rtol=0.02, atol=2e-6)


def test_no_start_is_at_the_saddle():
    setup = a_setup()
    setup.Y = torch.from_numpy(np.random.default_rng(5).standard_normal(setup.Y.shape)).float()
    assert (pooled_start(setup).norm(dim=1) > 0.01).all()  # pure noise, of which cross-validation makes nothing


@pytest.mark.parametrize("places", [2**25, 1])
def test_best_places_are_those_of_the_largest_correlation(monkeypatch, places):
    monkeypatch.setattr(module, "PLACES", places)
    setup = a_setup()
    weights = torch.from_numpy(np.random.default_rng(3).standard_normal((3, 4))).float()
    drive = np.einsum("ntd,vd->ntv", standardised(setup), weights.numpy())[setup.train_rows]
    Y = setup.Y.numpy()[setup.train_rows]
    expected = [
        np.argmax([np.corrcoef(drive[:, place, unit], Y[:, unit])[0, 1] for place in range(6)]) for unit in range(3)
    ]
    assert best_places(weights, setup).tolist() == expected


def test_what_is_not_known_does_not_steer_a_start():
    setup = a_setup(missing=0.3)
    other = a_setup(missing=0.3)
    other.Y = torch.where(other.known, other.Y, 1e3)
    assert torch.equal(pooled_start(setup), pooled_start(other))
