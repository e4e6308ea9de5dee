"""Losses against torch, NumPy and SciPy, and correlations gathered in one pass."""

import numpy as np
import pytest
import torch
from scipy.stats import linregress, poisson

from neuralign.encoders.spatial.losses import FLOOR, LOSSES, StreamingCorrelation, checked_loss, positive_rate


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    Y = rng.standard_normal((30, 4))
    return torch.from_numpy(0.6 * Y + 0.5 * rng.standard_normal((30, 4))), torch.from_numpy(Y)


@pytest.fixture
def known():
    return torch.from_numpy(np.random.default_rng(1).random((30, 4)) < 0.7)


def test_squared_error_is_that_of_torch(pair):
    P, Y = pair
    torch.testing.assert_close(LOSSES["mse"](P, Y), torch.nn.MSELoss()(P, Y), rtol=1e-12, atol=0)


def test_correlation_is_that_of_numpy(pair):
    P, Y = pair
    expected = np.mean([1 - np.corrcoef(P[:, v], Y[:, v])[0, 1] for v in range(4)])
    assert float(LOSSES["correlation"](P, Y)) == pytest.approx(expected, abs=1e-7)


def test_correlation_over_known_rows(pair, known):
    P, Y = pair
    known[:, 3] = False
    known[:2, 3] = True  # two rows: no correlation
    expected = np.mean([1 - np.corrcoef(P[known[:, v], v], Y[known[:, v], v])[0, 1] for v in range(3)])
    assert float(LOSSES["correlation"](P, Y, known)) == pytest.approx(expected, abs=1e-7)


def test_correlation_has_gradients_where_predictions_are_constant():
    P = torch.zeros(8, 2, dtype=torch.float64, requires_grad=True)
    LOSSES["correlation"](P, torch.randn(8, 2, dtype=torch.float64)).backward()
    assert P.grad.isfinite().all()


def test_poisson_is_the_likelihood_less_a_constant(pair):
    P, _ = pair
    counts = np.random.default_rng(2).poisson(1.5, P.shape)
    rates = positive_rate(P)
    found, other = LOSSES["poisson"](P, torch.from_numpy(counts)), LOSSES["poisson"](P + 1, torch.from_numpy(counts))
    likelihood = [-poisson.logpmf(counts, positive_rate(P + by).numpy()).mean() for by in (0, 1)]
    assert float(found - other) == pytest.approx(likelihood[0] - likelihood[1], rel=1e-10)
    assert rates.min() > FLOOR


def test_a_poisson_bias_starts_at_the_mean():
    mean = np.array([0.01, 1.0, 50.0])
    start = LOSSES["poisson"].start(mean)
    np.testing.assert_allclose(positive_rate(start).numpy(), mean, rtol=1e-3)
    assert not LOSSES["mse"].start(mean).any()


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_are_those_of_the_known_entries(name, pair, known):
    P, Y = pair
    Y = Y.abs().round() if name == "poisson" else Y
    grads = []
    for hidden in (0.0, 1e6):  # what stands where nothing is known does not matter
        p = P.clone().requires_grad_()
        LOSSES[name](p, torch.where(known, Y, hidden), known).backward()
        grads.append(p.grad)
    assert torch.equal(grads[0], grads[1])
    assert not grads[0][~known].any()
    if name == "correlation":
        p = P.clone().requires_grad_()
        for v in range(4):
            rows = known[:, v]
            (LOSSES[name](p[rows, v : v + 1], Y[rows, v : v + 1]) / 4).backward()
    else:
        p = P.clone().requires_grad_()
        LOSSES[name](p[known][:, None], Y[known][:, None]).backward()
    torch.testing.assert_close(grads[0], p.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["mze", None, 3])
def test_unknown_losses_are_refused(name):
    with pytest.raises(ValueError, match=r"loss=.* is unknown.*'mse', 'correlation', 'poisson'"):
        checked_loss(name)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("missing", [False, True])
def test_streamed_correlation(offset, missing):
    rng = np.random.default_rng(3)
    Y = rng.standard_normal((200, 5)) + offset
    P = 0.5 * (Y - offset) + rng.standard_normal((200, 5)) - offset
    known = rng.random((200, 5)) < (0.6 if missing else 2)
    known[:60, 2] = not missing  # a first batch without any
    moments = StreamingCorrelation(5)
    for start in range(0, 200, 30):
        part = slice(start, start + 30)
        there = torch.from_numpy(known[part]) if missing else None
        moments.update(torch.from_numpy(P[part]), torch.from_numpy(np.where(known, Y, np.nan)[part]), there)
    columns = [(P[known[:, v], v], Y[known[:, v], v]) for v in range(5)]
    np.testing.assert_allclose(moments.r(), [np.corrcoef(p, y)[0, 1] for p, y in columns], atol=1e-10)
    np.testing.assert_allclose(moments.variation(), [len(y) * y.var() for _, y in columns], rtol=1e-9)
    lines = [linregress(p - p.mean(), y - y.mean()).slope for p, y in columns]
    slope, intercept = moments.line()
    np.testing.assert_allclose(slope, lines, rtol=1e-9)
    np.testing.assert_allclose(intercept, [y.mean() - b * p.mean() for b, (p, y) in zip(lines, columns, strict=True)])


def test_streamed_correlation_of_constants_is_nan():
    rng = np.random.default_rng(4)
    P, Y = rng.standard_normal((2, 50, 4))
    P[:, 0], Y[:, 1] = 0.1, 1e6 + 0.1
    known = np.ones((50, 4), bool)
    known[2:, 2] = False
    moments = StreamingCorrelation(4)
    moments.update(*(torch.from_numpy(values) for values in (P, Y, known)))
    assert np.isnan(moments.r()[:3]).all()
    assert np.isfinite(moments.r()[3])
    assert moments.line()[0][0] == 0
    assert moments.line()[1][0] == pytest.approx(Y[:, 0].mean())
