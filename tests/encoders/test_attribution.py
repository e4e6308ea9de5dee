"""Parts of R2 and r: they add up, agree with himalaya where it is defined, and mind the mean of the test rows."""

import warnings

import numpy as np
import pytest
from himalaya.scoring import correlation_score_split, r2_score_split
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from neuralign.encoders.linear.attribution import split_r, split_r2

B, N, V = 3, 40, 6


def made(seed=0, dtype=np.float64, offset=0.0):
    """Correlated bands, centred on their rows, and responses that follow their sum."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((N, V))
    by_band = 0.5 * shared + rng.standard_normal((B, N, V)) * np.array([1.0, 0.5, 0.1])[:, None, None]
    by_band -= by_band.mean(1, keepdims=True)
    observed = by_band.sum(0) * rng.uniform(-0.3, 1.5, V) + rng.standard_normal((N, V))
    observed += offset - observed.mean(0)
    return by_band.astype(dtype), observed.astype(dtype)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 3e-5)])
def test_parity_with_himalaya(dtype, tolerance):
    by_band, observed = made(dtype=dtype)
    np.testing.assert_allclose(split_r2(by_band, observed), r2_score_split(observed, by_band), atol=tolerance)
    moved = by_band + np.arange(1, B + 1, dtype=dtype)[:, None, None]  # r knows no offsets
    for bands in (by_band, moved):
        parts = split_r(bands, observed + 3)
        np.testing.assert_allclose(parts, correlation_score_split(observed + 3, bands), atol=tolerance)
    assert split_r2(by_band, observed).dtype == np.float64


def held_out(seed=0):
    """Ridge over three bands, fitted to rows of one mean and tried on rows of another."""
    rng = np.random.default_rng(seed)
    bands = [slice(0, 4), slice(4, 9), slice(9, 11)]
    X = rng.standard_normal((2 * N, 11)) + rng.standard_normal(11) * 3
    Y = X @ rng.standard_normal((11, V)) + 5 * rng.standard_normal((2 * N, V)) + 20
    train, test = np.arange(N), np.arange(N, 2 * N)
    X[test] += 0.4  # the mean of the test rows is no mean of the training rows
    fit = Ridge(alpha=5.0).fit(X[train], Y[train])
    raw = np.stack([X[test][:, band] @ fit.coef_.T[band] for band in bands])
    mean = X[train].mean(0)
    centred = np.stack([(X[test][:, band] - mean[band]) @ fit.coef_.T[band] for band in bands])
    return raw, centred, Y[test], fit, Y[train].mean(0), fit.predict(X[test])


def test_parts_of_held_out_rows_add_up_with_an_intercept():
    raw, centred, observed, fit, mean, predicted = held_out()
    truth = r2_score(observed, predicted, multioutput="raw_values")
    assert np.ptp(truth) > 0.01 and (np.abs(predicted.mean(0) - observed.mean(0)) > 0.1).any()  # there is a bias
    parts = split_r2(centred, observed, intercept=mean)
    np.testing.assert_allclose(parts.sum(0), truth, atol=1e-12)
    # Features as they are, or centred: one model, one split.
    np.testing.assert_allclose(split_r2(raw, observed, intercept=fit.intercept_), parts, atol=1e-11)
    correlations = [pearsonr(predicted[:, v], observed[:, v])[0] for v in range(V)]
    np.testing.assert_allclose(split_r(centred, observed).sum(0), correlations, atol=1e-12)
    np.testing.assert_allclose(split_r(raw, observed), split_r(centred, observed), atol=1e-11)


def test_parts_against_a_plain_loop():
    _, centred, observed, _, mean, _ = held_out(1)
    parts, r_parts = split_r2(centred, observed, intercept=mean), split_r(centred, observed)
    for v in range(V):
        y = observed[:, v]
        p = [centred[b, :, v] - centred[b, :, v].mean() for b in range(B)]
        bias = mean[v] + sum(centred[b, :, v].mean() for b in range(B)) - y.mean()
        variances = [np.var(one) for one in p]
        for b in range(B):
            part = 2 * np.cov(p[b], y, ddof=0)[0, 1] - sum(np.mean(p[b] * other) for other in p)
            part -= bias**2 * variances[b] / sum(variances)
            assert parts[b, v] == pytest.approx(part / np.var(y), abs=1e-12)
            assert r_parts[b, v] == pytest.approx(np.cov(p[b], y, ddof=0)[0, 1] / np.std(y) / np.std(sum(p)), abs=1e-12)


def test_himalaya_differs_where_rows_are_not_centred_and_only_in_the_bias():
    _, centred, observed, _, _, _ = held_out()
    shifted = observed - observed.mean(0)
    ours, theirs = split_r2(centred, shifted), r2_score_split(shifted, centred)
    np.testing.assert_allclose(ours.sum(0), theirs.sum(0), atol=1e-11)
    bias = centred.mean(1).sum(0)
    variance = centred.var(1)
    mine = -variance / variance.sum(0) * bias**2 / shifted.var(0)
    its_own = -centred.mean(1) * bias / shifted.var(0)
    np.testing.assert_allclose(ours - theirs, mine - its_own, atol=1e-11)
    with pytest.warns(UserWarning, match="zero-mean"):  # responses with a mean it cannot split at all
        wrong = r2_score_split(observed, centred).sum(0)
    truth = r2_score(observed, centred.sum(0) + observed.mean(0), multioutput="raw_values")
    np.testing.assert_allclose(split_r2(centred, observed, observed.mean(0)).sum(0), truth, atol=1e-12)
    assert np.abs(wrong - truth).max() > 0.1


def test_a_silent_band_contributes_nothing_and_an_orthogonal_one_its_own_score():
    by_band, observed = made(offset=7.0)
    by_band[1] = 0
    assert (split_r2(by_band, observed, 5.0)[1] == 0).all() and (split_r(by_band, observed)[1] == 0).all()
    q = np.linalg.qr(np.column_stack([np.ones(N), np.random.default_rng(0).standard_normal((N, 3))]))[0][:, 1:]
    y = 2 * q[:, 0] + q[:, 1] + q[:, 2]
    parts = split_r2(np.stack([2 * q[:, 0], q[:, 1]]), y)
    np.testing.assert_allclose(parts, [4 / 6, 1 / 6], atol=1e-12)
    np.testing.assert_allclose(parts[0], r2_score(y, 2 * q[:, 0]), atol=1e-12)


def test_predictions_of_nothing():
    _, observed = made(offset=2.0)
    silent = np.zeros((B, N, V))
    truth = r2_score(observed, np.zeros_like(observed), multioutput="raw_values")
    np.testing.assert_allclose(split_r2(silent, observed), np.tile(truth / B, (B, 1)), atol=1e-12)
    assert (split_r(silent, observed) == 0).all()
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        band = (rng.standard_normal((N, V)) * 0.1).astype(dtype)
        cancelling = np.stack([band * 3, -band, -band, -band])  # what is left of their sum is rounding
        assert (split_r(cancelling, observed) == 0).all()


def test_units_that_cannot_be_scored_are_nan_with_one_warning():
    by_band, observed = made()
    whole = split_r2(by_band, observed), split_r(by_band, observed)
    observed, by_band = observed.copy(), by_band.copy()
    observed[:, 0] = 4.1
    observed[3, 2] = np.nan
    by_band[1, 5, 3] = np.nan
    for split, before in zip((split_r2, split_r), whole, strict=True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            parts = split(by_band, observed)
        assert [str(w.message)[:49] for w in caught] == ["3 of 6 units are constant or lack responses or pr"]
        assert np.isnan(parts[:, [0, 2, 3]]).all()
        np.testing.assert_allclose(parts[:, [1, 4, 5]], before[:, [1, 4, 5]])


def test_shapes():
    by_band, observed = made()
    np.testing.assert_allclose(split_r2(by_band[:, :, 0], observed[:, 0]), split_r2(by_band, observed)[:, 0])
    assert split_r(by_band[:, :, 0], observed[:, 0]).shape == (B,)
    for bands, y in ((by_band[0], observed), (by_band[:, 1:], observed), (by_band[:0], observed)):
        with pytest.raises(ValueError, match="by_band has shape .* expected"):
            split_r2(bands, y)
    with pytest.raises(ValueError, match="by_band has shape"):
        split_r(by_band[:, :1], observed[:1])
    with pytest.raises(ValueError, match="intercept has shape .5,.; expected a number, or one for each of 6 units"):
        split_r2(by_band, observed, intercept=np.zeros(5))
