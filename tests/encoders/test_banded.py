"""BandedRidgeCV against a loop over shares, penalties and folds, and the manners of an estimator."""

import pickle
import warnings
from itertools import pairwise

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, KFold, LeaveOneOut, ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders import Delays, split_r2
from neuralign.encoders.linear import shares as module
from neuralign.encoders.linear.banded import BandedRidgeCV, checked_spaces
from neuralign.encoders.linear.ridge import RidgeCV
from neuralign.encoders.linear.stream import BlockFitter, Plan

# Grids are kept short here; the warning has a test of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.*of the chosen alphas lie at an end of the grid")

ALPHAS = np.logspace(-1, 4, 6)
GAMMAS = np.array([[1, 1, 1], [6, 3, 1], [1, 0, 3], [0, 1, 0], [0.02, 0.08, 0.9]])
SHAPES = {"primal": (60, (4, 6, 5), 9), "dual": (40, (30, 50, 20), 9), "train<p<n": (40, (10, 14, 12), 9)}


@pytest.mark.filterwarnings("ignore:.* folds have fewer than 3 test rows", "ignore:.*test folds of two rows at most")
@parametrize_with_checks(
    [
        BandedRidgeCV(spaces=[slice(None)]),
        BandedRidgeCV(spaces=[slice(0, 1), slice(1, None)], n_iter=4),
        BandedRidgeCV(spaces=[[0], slice(1, None)], n_iter=4, per_unit=False, fit_intercept=False, score="r2"),
    ],
    expected_failed_checks=lambda encoder: (
        {"check_fit2d_1feature": "one feature makes no two spaces"} if len(encoder.spaces) == 2 else {}
    ),
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def simulate(n, sizes, v, dtype=np.float64, seed=0):
    """Spaces of different scales and offsets; each unit has weights in one or two of them."""
    rng = np.random.default_rng(seed)
    X, signal = [], np.zeros((n, v))
    for s, size in enumerate(sizes):
        F = rng.standard_normal((n, size)) * (1 + s) + 3 * s
        strength = np.where(np.arange(v) % len(sizes) == s, 1.0, 0.3 * (np.arange(v) % 2))
        signal += (F - F.mean(0)) @ rng.standard_normal((size, v)) / (1 + s) / size**0.5 * strength
        X.append(F)
    Y = signal + 0.7 * rng.standard_normal((n, v)) + 4.0
    return np.hstack(X).astype(dtype), Y.astype(dtype)


def scaled(X, gamma, sizes):
    return X.astype(np.float64) * np.repeat(np.sqrt(gamma), sizes)


def reference_scores(X, Y, sizes, gammas, folds, score, intercept=True):
    """Mean over folds of the score (shares, alpha, unit), one fit of scikit-learn after the other."""
    table = np.full((len(gammas), len(ALPHAS), len(folds), Y.shape[1]), np.nan)
    for g, gamma in enumerate(gammas):
        F = scaled(X, gamma, sizes)
        for a, alpha in enumerate(ALPHAS):
            for f, (train, test) in enumerate(folds):
                ridge = Ridge(alpha, fit_intercept=intercept).fit(F[train], Y[train].astype(np.float64))
                predicted = ridge.predict(F[test])
                for u in range(Y.shape[1]):
                    y, q = Y[test, u].astype(np.float64), predicted[:, u]
                    if score == "r":
                        table[g, a, f, u] = np.corrcoef(y, q)[0, 1]
                    else:
                        table[g, a, f, u] = 1 - ((y - q) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    return table.mean(axis=2)


def reference_weights(X, Y, sizes, gamma, alpha, intercept=True):
    """Weights and intercept of one unit on the unscaled features."""
    ridge = Ridge(alpha, fit_intercept=intercept).fit(scaled(X, gamma, sizes), Y.astype(np.float64))
    return ridge.coef_ * np.repeat(np.sqrt(gamma), sizes), ridge.intercept_


# Numbers


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("score", ["r", "r2"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_given_shares_against_a_slow_loop(shape, score, intercept, dtype):
    n, sizes, v = shape
    X, Y = simulate(n, sizes, v, dtype)
    encoder = BandedRidgeCV(sizes, ALPHAS, n_iter=GAMMAS, cv=4, score=score, fit_intercept=intercept).fit(X, Y)
    gammas = GAMMAS / GAMMAS.sum(1, keepdims=True)
    np.testing.assert_allclose(encoder.gammas_, gammas, rtol=1e-15)
    table = reference_scores(X, Y, sizes, gammas, list(KFold(4).split(X)), score, intercept)
    tolerance = 1e-5 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(encoder.cv_score_, table.max((0, 1)), atol=tolerance)
    best = [np.unravel_index(table[:, :, u].argmax(), table.shape[:2]) for u in range(v)]
    g, a = np.array(best).T
    if dtype == np.float64:  # float32 may choose another among the best, which the score above allows
        np.testing.assert_array_equal(encoder.alpha_, ALPHAS[a])
        np.testing.assert_array_equal(encoder.gamma_, encoder.gammas_[g].T)
    predicted = encoder.predict(X)
    for u in range(v):
        b, b0 = reference_weights(X, Y[:, u], sizes, encoder.gamma_[:, u], encoder.alpha_[u], intercept)
        np.testing.assert_allclose(encoder.coef_[:, u], b, atol=20 * tolerance * np.abs(b).max())
        np.testing.assert_allclose(predicted[:, u], X.astype(np.float64) @ b + b0, atol=10 * tolerance)
        np.testing.assert_allclose(encoder.intercept_[u], b0, atol=50 * tolerance)
    assert len(np.unique(encoder.gamma_[0])) > 1


@pytest.mark.parametrize("per_unit", [True, False])
@pytest.mark.parametrize("shape", [(50, (4, 6, 5), 8), (50, (40, 30, 30), 8)])
def test_features_and_their_kernel_give_the_same(shape, per_unit, monkeypatch):
    """Both routes forced onto the same data."""
    n, sizes, v = shape
    X, Y = simulate(n, sizes, v)
    fits = []
    for dual in (False, True):
        init = module.Bands.__init__

        def forced(self, X, spaces, folds, centre, device, dual=dual, init=init):
            # The number of columns is all that the choice reads; zeros in a space of their own change nothing else.
            init(self, X, spaces, folds, centre, device)
            if dual and not self.dual:
                self.dual = True
                self._kernels = [module.DenseFeatures(X[:, c], centre, device).kernel() for c in spaces]
            assert self.dual == dual or X.shape[1] > len(X)

        with monkeypatch.context() as patched:
            patched.setattr(module.Bands, "__init__", forced)
            fits.append(BandedRidgeCV(sizes, ALPHAS, n_iter=8, cv=4, per_unit=per_unit).fit(X, Y))
    primal, dual = fits
    np.testing.assert_array_equal(dual.alpha_, primal.alpha_)
    np.testing.assert_array_equal(dual.gamma_, primal.gamma_)
    np.testing.assert_allclose(dual.cv_score_, primal.cv_score_, atol=1e-10)
    np.testing.assert_allclose(dual.coef_, primal.coef_, atol=1e-10)
    np.testing.assert_allclose(dual.predict(X), primal.predict(X), atol=1e-10)


@pytest.mark.parametrize("p", [12, 90])
@pytest.mark.parametrize("per_unit", [True, False])
def test_one_space_is_ridge_regression(p, per_unit):
    X, Y = simulate(50, (p,), 7)
    ridge = RidgeCV(ALPHAS, per_unit=per_unit).fit(X, Y)
    encoder = BandedRidgeCV([p], ALPHAS, per_unit=per_unit).fit(X, Y)
    assert encoder.gammas_.shape == (1, 1)  # there is nothing to search
    np.testing.assert_array_equal(encoder.alpha_, ridge.alpha_)
    np.testing.assert_array_equal(encoder.band_alpha_, ridge.alpha_[None])
    np.testing.assert_allclose(encoder.cv_score_, ridge.cv_score_, atol=1e-10)
    np.testing.assert_allclose(encoder.coef_, ridge.coef_, atol=1e-10)


@pytest.mark.parametrize("score", ["r", "r2"])
@pytest.mark.parametrize("sizes", [(4, 6, 5), (30, 50, 20)])
def test_one_set_of_shares_and_one_alpha_for_all(sizes, score):
    X, Y = simulate(45, sizes, 8)
    encoder = BandedRidgeCV(sizes, ALPHAS, n_iter=10, refine=0.3, cv=3, score=score, per_unit=False).fit(X, Y)
    assert len(np.unique(encoder.alpha_)) == 1
    assert len(np.unique(encoder.gamma_, axis=1).T) == 1
    table = reference_scores(X, Y, sizes, encoder.gammas_, list(KFold(3).split(X)), score)
    mean = table.mean(axis=2)
    g, a = np.unravel_index(mean.argmax(), mean.shape)
    np.testing.assert_array_equal(encoder.gamma_[:, 0], encoder.gammas_[g])
    assert encoder.alpha_[0] == ALPHAS[a]
    np.testing.assert_allclose(encoder.cv_score_, table[g, a], atol=1e-9)
    for u in range(8):
        b, b0 = reference_weights(X, Y[:, u], sizes, encoder.gammas_[g], ALPHAS[a])
        np.testing.assert_allclose(encoder.coef_[:, u], b, atol=1e-9)
        np.testing.assert_allclose(encoder.intercept_[u], b0, atol=1e-9)


def test_units_with_nan_or_constant_do_not_vote_on_shares_for_all():
    X, Y = simulate(45, (4, 6, 5), 8)
    plain = BandedRidgeCV((4, 6, 5), ALPHAS, n_iter=8, per_unit=False).fit(X, Y)
    more = np.hstack([Y, np.full((45, 1), 0.1), np.full((45, 1), np.nan)])
    with pytest.warns(UserWarning):
        encoder = BandedRidgeCV((4, 6, 5), ALPHAS, n_iter=8, per_unit=False).fit(X, more)
    np.testing.assert_array_equal(encoder.gamma_[:, :8], plain.gamma_)
    np.testing.assert_array_equal(encoder.alpha_[:8], plain.alpha_)
    np.testing.assert_allclose(encoder.coef_[:, :8], plain.coef_, atol=1e-12)


@pytest.mark.parametrize("sizes", [(4, 6, 5), (30, 50, 20)])
def test_winner_takes_all(sizes):
    """Shares of zero: each unit is fitted by the one space that predicts it best, as if there were no other."""
    X, Y = simulate(60, sizes, 9)
    X[:, : sizes[0]] += 0.1  # off zero, so that a space left out is not a space of zeros
    encoder = BandedRidgeCV(sizes, ALPHAS, n_iter=np.eye(3), score="r2").fit(X, Y)
    edges = np.cumsum([0, *sizes])
    alone = [RidgeCV(ALPHAS, score="r2").fit(X[:, i:j], Y) for i, j in pairwise(edges)]
    best = np.argmax([one.cv_score_ for one in alone], axis=0)
    assert len(set(best)) == 3
    for u, space in enumerate(best):
        np.testing.assert_array_equal(encoder.gamma_[:, u], np.eye(3)[space])
        expected = np.full(3, np.inf)
        expected[space] = alone[space].alpha_[u]
        np.testing.assert_array_equal(encoder.band_alpha_[:, u], expected)
        coef = np.zeros(edges[-1])
        coef[edges[space] : edges[space + 1]] = alone[space].coef_[:, u]
        np.testing.assert_allclose(encoder.coef_[:, u], coef, atol=1e-10)
        assert (np.delete(encoder.coef_[:, u], np.arange(edges[space], edges[space + 1])) == 0).all()
    by_band = encoder.predict_by_band(X)
    assert (by_band[encoder.gamma_[:, None].repeat(60, 1) == 0] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [(4, 6, 5), (30, 50, 20)])
@pytest.mark.parametrize("intercept", [True, False])
def test_predictions_by_band_add_up(sizes, intercept, dtype):
    X, Y = simulate(60, sizes, 9, dtype)
    encoder = BandedRidgeCV(sizes, ALPHAS, n_iter=6, fit_intercept=intercept).fit(X[:45], Y[:45])
    by_band, predicted = encoder.predict_by_band(X[45:]), encoder.predict(X[45:])
    assert by_band.shape == (3, 15, 9)
    assert by_band.dtype == predicted.dtype == dtype
    tolerance = 1e-5 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(by_band.sum(0) + encoder.response_mean_, predicted, atol=tolerance)
    edges = np.cumsum([0, *sizes])
    centred = X[45:] - encoder.feature_mean_
    for band in range(3):
        columns = slice(edges[band], edges[band + 1])
        np.testing.assert_allclose(by_band[band], centred[:, columns] @ encoder.coef_[columns], atol=tolerance)
    np.testing.assert_allclose(X[45:] @ encoder.coef_ + encoder.intercept_, predicted, atol=10 * tolerance)
    parts = split_r2(by_band, Y[45:], intercept=encoder.response_mean_)
    y = Y[45:].astype(np.float64)
    expected = 1 - ((y - predicted) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(parts.sum(0), expected, atol=tolerance)


def test_columns_of_spaces_in_any_order():
    sizes = (4, 6, 5)
    X, Y = simulate(60, sizes, 6)
    order = np.random.default_rng(0).permutation(15)
    place = np.argsort(order)
    scattered = [place[:4], place[4:10], np.isin(np.arange(15), place[10:])]
    plain = BandedRidgeCV(sizes, ALPHAS, n_iter=8).fit(X, Y)
    encoder = BandedRidgeCV(scattered, ALPHAS, n_iter=8).fit(X[:, order], Y)
    np.testing.assert_array_equal(encoder.gamma_, plain.gamma_)
    np.testing.assert_allclose(encoder.coef_, plain.coef_[order], atol=1e-12)
    np.testing.assert_allclose(encoder.predict_by_band(X[:, order]), plain.predict_by_band(X), atol=1e-10)


def test_scale_of_a_space_only_moves_where_to_look():
    sizes = (4, 11)
    X, Y = simulate(60, sizes, 6)
    gammas = np.array([[1, 1], [1, 3], [5, 1.0]])
    plain = BandedRidgeCV(sizes, ALPHAS, n_iter=gammas).fit(X, Y)
    # A hundred times the scale, a hundredth squared of the share; the sum of shares moves to alpha.
    other = gammas * [1e-4, 1.0]
    for g, row in enumerate(other):
        total = gammas[g].sum() / row.sum()
        again = BandedRidgeCV(sizes, ALPHAS * total, n_iter=row[None]).fit(X * np.repeat([100.0, 1.0], sizes), Y)
        once = BandedRidgeCV(sizes, ALPHAS, n_iter=gammas[g : g + 1]).fit(X, Y)
        np.testing.assert_allclose(again.cv_score_, once.cv_score_, atol=1e-10)
        np.testing.assert_allclose(again.predict(X * np.repeat([100.0, 1.0], sizes)), once.predict(X), atol=1e-9)
    assert len(np.unique(plain.gamma_[0])) > 1


@pytest.mark.parametrize("offset", [10.0, 1e4])
@pytest.mark.parametrize("sizes", [(4, 11), (40, 60)])
def test_large_offsets_cost_no_accuracy(sizes, offset):
    X, Y = simulate(60, sizes, 6, np.float32)
    X = X + np.float32(offset)
    single = BandedRidgeCV(sizes, ALPHAS, n_iter=GAMMAS[:, :2] + 0.1).fit(X, Y)
    double = BandedRidgeCV(sizes, ALPHAS, n_iter=GAMMAS[:, :2] + 0.1).fit(X.astype(np.float64), Y)
    np.testing.assert_array_equal(single.alpha_, double.alpha_)
    np.testing.assert_array_equal(single.gamma_, double.gamma_)
    np.testing.assert_allclose(single.cv_score_, double.cv_score_, atol=1e-5)
    spread = double.predict(X).std(axis=0)
    assert (np.abs(single.predict(X) - double.predict(X)) < 2e-5 * spread).all()


@pytest.mark.parametrize("shape", [(200, 60), (80, 200)])
@pytest.mark.parametrize("decay", [1, 2, 4])
def test_steep_spectra_in_single_precision(shape, decay):
    """Weights of rows cancel along large axes: kept in float32, predictions were wrong by 4e-4 of their sd."""
    n, p = shape
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((p, p)))[0]
    steps = np.arange(1, p + 1.0)
    X = 10 * rng.standard_normal((n + 50, p)) * steps ** (-decay / 2) @ turn + 2
    Y = (X - 2) @ (turn.T * steps ** (decay / 4)).sum(1)[:, None]
    Y = Y / Y.std() + 0.1 * rng.standard_normal((n + 50, 5))
    X, Y = X.astype(np.float32), Y.astype(np.float32)
    encoder = BandedRidgeCV([p // 2, p - p // 2], [0.1], n_iter=[[3, 1]])
    single = clone(encoder).fit(X[:n], Y[:n])
    double = clone(encoder).fit(X[:n].astype(np.float64), Y[:n])
    expected = double.predict(X[n:].astype(np.float64))
    assert (np.abs(single.predict(X[n:]) - expected) < 3e-5 * expected.std(0)).all()


# What comes out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [(4, 6), (40, 60)])
def test_shapes_and_dtypes(sizes, dtype):
    X, Y = simulate(50, sizes, 7, dtype)
    p = sum(sizes)
    encoder = BandedRidgeCV(sizes, n_iter=6).fit(X, Y)
    assert encoder.gammas_.shape == (6, 2)
    assert encoder.gamma_.shape == encoder.band_alpha_.shape == (2, 7)
    assert encoder.alpha_.shape == encoder.cv_score_.shape == encoder.intercept_.shape == (7,)
    assert encoder.coef_.shape == (p, 7)
    assert encoder.feature_mean_.shape == (p,)
    assert encoder.n_features_in_ == p
    assert encoder.coef_.dtype == encoder.predict(X).dtype == encoder.intercept_.dtype == dtype
    assert encoder.predict_by_band(X).dtype == dtype
    np.testing.assert_allclose(encoder.gammas_.sum(1), 1)
    np.testing.assert_allclose(encoder.gammas_[0], 0.5)
    assert np.isin(encoder.alpha_, encoder.alphas_).all()  # grid values bit for bit
    np.testing.assert_array_equal(encoder.band_alpha_, encoder.alpha_ / encoder.gamma_)


def test_integers_become_float64():
    X, Y = simulate(50, (4, 6), 3)
    assert BandedRidgeCV([4, 6], n_iter=2).fit((10 * X).astype(int), (10 * Y).astype(int)).coef_.dtype == np.float64


@pytest.mark.parametrize("sizes", [(4, 6), (40, 60)])
def test_vector_is_one_unit_without_axis(sizes):
    X, Y = simulate(50, sizes, 1)
    whole, single = (BandedRidgeCV(sizes, n_iter=6).fit(X, y) for y in (Y, Y[:, 0]))
    assert np.ndim(single.alpha_) == np.ndim(single.intercept_) == np.ndim(single.cv_score_) == 0
    assert single.gamma_.shape == single.band_alpha_.shape == (2,)
    for name in ("gamma_", "coef_"):
        np.testing.assert_array_equal(getattr(single, name), getattr(whole, name)[:, 0])
    np.testing.assert_array_equal(single.predict(X), whole.predict(X)[:, 0])
    np.testing.assert_array_equal(single.predict_by_band(X), whole.predict_by_band(X)[..., 0])
    assert single.score(X, Y[:, 0]) == pytest.approx(whole.score(X, Y))


@pytest.mark.parametrize("sizes", [(4, 6), (40, 60)])
def test_inputs_stay_untouched_and_may_change_afterwards(sizes):
    X, Y = simulate(50, sizes, 7)
    X_before, Y_before = X.copy(), Y.copy()
    X.setflags(write=False)
    Y.setflags(write=False)
    encoder = BandedRidgeCV(sizes, n_iter=6).fit(X, Y)
    np.testing.assert_array_equal(X, X_before)
    np.testing.assert_array_equal(Y, Y_before)
    expected = encoder.predict(X_before), encoder.coef_
    X.setflags(write=True)
    X += 100
    np.testing.assert_array_equal(encoder.predict(X_before), expected[0])
    np.testing.assert_array_equal(encoder.coef_, expected[1])


@pytest.mark.parametrize("sizes", [(4, 6), (40, 60)])
@pytest.mark.parametrize("per_unit", [True, False])
def test_result_does_not_depend_on_blocks(sizes, per_unit, monkeypatch):
    X, Y = simulate(50, sizes, 23)
    whole = BandedRidgeCV(sizes, n_iter=8, per_unit=per_unit).fit(X, Y)
    widths = []
    fit = BlockFitter.fit_prepared

    def watched(self, prepared, index=None):
        widths.append(prepared.n_columns)
        return fit(self, prepared, index)

    monkeypatch.setattr(BlockFitter, "fit_prepared", watched)
    tiny = BandedRidgeCV(sizes, n_iter=8, per_unit=per_unit, max_memory=1).fit(X, Y)
    assert set(widths) == {1}
    np.testing.assert_array_equal(tiny.gammas_, whole.gammas_)
    np.testing.assert_array_equal(tiny.gamma_, whole.gamma_)
    np.testing.assert_array_equal(tiny.alpha_, whole.alpha_)
    np.testing.assert_allclose(tiny.coef_, whole.coef_, atol=1e-10)
    np.testing.assert_allclose(tiny.predict(X), whole.predict(X), rtol=1e-9)
    np.testing.assert_allclose(tiny.predict_by_band(X), whole.predict_by_band(X), atol=1e-9)


@pytest.mark.parametrize("cv", [KFold(4), ShuffleSplit(6, random_state=0)])  # ShuffleSplit: one layout for each fold
def test_responses_on_disk_and_blocks_that_are_not_kept(tmp_path, cv):
    X, Y = simulate(50, (4, 6), 23, np.float32)
    np.save(tmp_path / "Y.npy", Y)
    memory = BandedRidgeCV([4, 6], n_iter=8, cv=cv).fit(X, Y)
    disk = BandedRidgeCV([4, 6], n_iter=8, cv=cv).fit(X, np.load(tmp_path / "Y.npy", mmap_mode="r"))
    np.testing.assert_array_equal(disk.gamma_, memory.gamma_)
    np.testing.assert_array_equal(disk.coef_, memory.coef_)


def test_seeds():
    X, Y = simulate(50, (4, 6, 5), 20)
    first, again, other = (BandedRidgeCV([4, 6, 5], n_iter=8, seed=seed).fit(X, Y) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.gammas_, again.gammas_)
    np.testing.assert_array_equal(first.coef_, again.coef_)
    assert not np.allclose(first.gammas_[1:], other.gammas_[1:])


@pytest.mark.parametrize("per_unit", [True, False])
def test_refined_shares_only_ever_add(per_unit):
    """The draws that are not refined are the same, and come first: refining them cannot lose what they found."""
    X, Y = simulate(60, (4, 6, 5), 40)
    alone = BandedRidgeCV([4, 6, 5], n_iter=10, refine=0, per_unit=per_unit).fit(X, Y)
    refined = BandedRidgeCV([4, 6, 5], n_iter=20, refine=0.5, per_unit=per_unit).fit(X, Y)
    np.testing.assert_array_equal(refined.gammas_[:10], alone.gammas_)
    assert refined.gammas_.shape == (20, 3)
    gain = refined.cv_score_ - alone.cv_score_ if per_unit else refined.cv_score_.mean() - alone.cv_score_.mean()
    assert np.min(gain) >= 0
    assert np.max(gain) > 1e-4


def test_clone_pickle_joblib_pipeline(tmp_path):
    for sizes in [(4, 6), (40, 60)]:
        X, Y = simulate(60, sizes, 7)
        encoder = BandedRidgeCV(list(sizes), n_iter=4, score="r2", cv=KFold(3)).fit(X, Y)
        assert clone(encoder).get_params()["score"] == "r2"
        restored = pickle.loads(pickle.dumps(encoder))
        np.testing.assert_array_equal(restored.predict(X), encoder.predict(X))
        np.testing.assert_array_equal(restored.predict_by_band(X), encoder.predict_by_band(X))
        joblib.dump(encoder, tmp_path / "encoder.joblib")
        np.testing.assert_array_equal(joblib.load(tmp_path / "encoder.joblib").coef_, encoder.coef_)
        pipeline = make_pipeline(StandardScaler(), BandedRidgeCV(list(sizes), n_iter=4))
        pipeline.fit(X, Y, bandedridgecv__groups=np.arange(60) // 6)
        assert pipeline.predict(X).shape == Y.shape


def test_groups_stay_whole():
    X, Y = simulate(60, (4, 6), 7)
    groups = np.random.default_rng(0).integers(0, 7, 60)
    by_int = BandedRidgeCV([4, 6], n_iter=4, cv=3).fit(X, Y, groups=groups)
    by_splitter = BandedRidgeCV([4, 6], n_iter=4, cv=GroupKFold(3)).fit(X, Y, groups=groups)
    by_pairs = BandedRidgeCV([4, 6], n_iter=4, cv=list(GroupKFold(3).split(X, groups=groups))).fit(X, Y)
    np.testing.assert_array_equal(by_int.cv_score_, by_splitter.cv_score_)
    np.testing.assert_array_equal(by_int.cv_score_, by_pairs.cv_score_)
    assert not np.allclose(by_int.cv_score_, BandedRidgeCV([4, 6], n_iter=4, cv=3).fit(X, Y).cv_score_)


@pytest.mark.parametrize("cv", [KFold(4, shuffle=True, random_state=0), ShuffleSplit(6, test_size=0.3, random_state=0)])
@pytest.mark.parametrize("sizes", [(4, 6), (40, 60)])
def test_folds_of_scattered_rows(sizes, cv):
    """Weights of rows came back in the order of the folds, and predictions were of other rows."""
    X, Y = simulate(60, sizes, 7)
    encoder = BandedRidgeCV(sizes, ALPHAS, n_iter=4, refine=0, cv=cv).fit(X, Y)
    table = reference_scores(X, Y, sizes, encoder.gammas_, list(cv.split(X)), "r")
    np.testing.assert_allclose(encoder.cv_score_, table.max((0, 1)), atol=1e-9)
    for u in range(7):
        b, b0 = reference_weights(X, Y[:, u], sizes, encoder.gamma_[:, u], encoder.alpha_[u])
        np.testing.assert_allclose(encoder.coef_[:, u], b, atol=1e-9)
        np.testing.assert_allclose(encoder.predict(X)[:, u], X @ b + b0, atol=1e-8)


# Units that cannot be fitted or scored


@pytest.mark.parametrize("sizes", [(4, 6), (40, 60)])
@pytest.mark.parametrize("per_unit", [True, False])
def test_units_with_nan_are_left_out_and_counted_once(sizes, per_unit):
    X, Y = simulate(50, sizes, 7)
    holed = Y.copy()
    holed[3, 1] = holed[:, 4] = np.nan
    rest = [0, 2, 3, 5, 6]
    with pytest.warns(UserWarning, match="2 of 7 units hold NaN") as caught:
        encoder = BandedRidgeCV(sizes, n_iter=8, refine=0, per_unit=per_unit).fit(X, holed)
    assert len(caught) == 1
    plain = BandedRidgeCV(sizes, n_iter=8, refine=0, per_unit=per_unit).fit(X, Y[:, rest])
    for name in ("alpha_", "cv_score_", "coef_", "intercept_", "gamma_", "band_alpha_"):
        values = getattr(encoder, name)
        assert np.isnan(values[..., [1, 4]]).all()
        np.testing.assert_allclose(values[..., rest], getattr(plain, name), rtol=1e-8)
    assert np.isnan(encoder.predict(X)[:, [1, 4]]).all()
    assert np.isnan(encoder.predict_by_band(X)[..., [1, 4]]).all()
    assert np.isfinite(encoder.predict_by_band(X)[..., rest]).all()


@pytest.mark.parametrize("sizes", [(4, 6), (40, 60)])
def test_constant_units_are_predicted_as_their_constant(sizes):
    X, Y = simulate(50, sizes, 7)
    Y[:, 2] = 0.1
    with pytest.warns(UserWarning, match="1 of 7 units have no cross-validated score") as caught:
        encoder = BandedRidgeCV(sizes, n_iter=8).fit(X, Y)
    assert len(caught) == 1
    np.testing.assert_array_equal(encoder.predict(X)[:, 2], np.full(50, 0.1))
    assert np.isnan(encoder.cv_score_[2])
    assert encoder.alpha_[2] == encoder.alphas_[-1]
    np.testing.assert_array_equal(encoder.gamma_[:, 2], [0.5, 0.5])


def test_nothing_to_refine():
    """No unit scores above zero: what remains of the draws is spent at random, on all units."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 6))
    with pytest.warns(UserWarning, match="3 of 3 units have no cross-validated score"):
        encoder = BandedRidgeCV([2, 4], n_iter=8).fit(X, np.ones((40, 3)))
    assert len(np.unique(encoder.gammas_, axis=0)) == 8


def test_warning_when_the_grid_ends_too_early():
    X, Y = simulate(60, (4, 6), 20)
    with pytest.warns(UserWarning, match=r"lie at an end of the grid \(1000 to 1e\+06\), mostly the lower") as caught:
        BandedRidgeCV([4, 6], [1e3, 1e6], n_iter=4, score="r2").fit(X, Y)
    assert len(caught) == 1


# Bad input


def test_spaces():
    for given, expected in [
        ([2, 3], [[0, 1], [2, 3, 4]]),
        (np.array([2, 3]), [[0, 1], [2, 3, 4]]),
        ([slice(0, 5, 2), slice(1, 5, 2)], [[0, 2, 4], [1, 3]]),
        ([[4, 0], range(1, 4)], [[4, 0], [1, 2, 3]]),
        ([np.arange(5) < 2, np.arange(5) >= 2], [[0, 1], [2, 3, 4]]),
    ]:
        assert [columns.tolist() for columns in checked_spaces(given, 5)] == expected


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"spaces": None}, "spaces=None: expected the number of columns of each space, with a sum of 10"),
        ({"spaces": [4, 5]}, "spaces cover 9 of the 10 columns"),
        ({"spaces": [4, 7]}, "expected each column in one space"),
        ({"spaces": [slice(0, 6), slice(4, 10)]}, "2 of them more than once"),
        ({"spaces": [10, 0]}, r"with sizes \[10, 0\]"),
        ({"spaces": [-2, 12]}, "expected each column in one space"),
        ({"spaces": []}, "spaces cover 0 of the 10"),
        ({"spaces": 10}, "spaces=10 cannot be read"),
        ({"spaces": [4.0, 6.0]}, "cannot be read"),
        ({"spaces": [[0, 10], slice(1, 10)]}, "cannot be read"),
        ({"spaces": [np.ones(9, bool), [9]]}, "cannot be read"),
        ({"spaces": "ab"}, "spaces='ab' cannot be read"),
        ({"n_iter": 0}, "n_iter=0: expected at least one"),
        ({"n_iter": True}, "n_iter=True"),
        ({"n_iter": None}, r"n_iter has shape \(\)"),
        ({"n_iter": "many"}, "n_iter='many'"),
        ({"n_iter": np.ones(2)}, r"n_iter has shape \(2,\); expected \(iteration, 2\)"),
        ({"n_iter": np.ones((3, 3))}, r"n_iter has shape \(3, 3\)"),
        ({"n_iter": np.ones((0, 2))}, r"n_iter has shape \(0, 2\)"),
        ({"n_iter": [[1, -1]]}, "negative, not finite, or all 0"),
        ({"n_iter": [[0, 0]]}, "negative, not finite, or all 0"),
        ({"n_iter": [[np.nan, 1]]}, "negative, not finite, or all 0"),
        ({"refine": 1}, "refine=1: expected a part of n_iter"),
        ({"refine": -0.1}, "refine=-0.1"),
        ({"refine": None}, "refine=None"),
        ({"refine": "half"}, "refine='half'"),
        ({"refine": np.nan}, "refine=nan"),
        ({"alphas": [0.0]}, "alphas holds 0"),
        ({"score": "r3"}, "score='r3' is unknown"),
        ({"cv": LeaveOneOut()}, "test folds of one row"),
        ({"max_memory": 0}, "max_memory=0"),
        ({"device": "gpu"}, "device='gpu'"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    X, Y = simulate(40, (4, 6), 3)
    with pytest.raises(ValueError, match=message):
        BandedRidgeCV(**{"spaces": [4, 6], "n_iter": 3} | parameters).fit(X, Y)


def test_data_out_of_range(tmp_path):
    X, Y = simulate(40, (4, 6), 3)
    encoder = BandedRidgeCV([4, 6], n_iter=3)
    with pytest.raises(ValueError, match="X has 40 rows and Y has 39"):
        encoder.fit(X, Y[:-1])
    with pytest.raises(ValueError, match="flatten the tokens"):
        encoder.fit(X.reshape(40, 2, 5), Y)
    with pytest.raises(ValueError, match=r"groups has shape \(39,\)"):
        encoder.fit(X, Y, groups=np.arange(39))
    with pytest.raises(ValueError, match="every unit of Y"):
        encoder.fit(X, np.full_like(Y, np.nan))
    with pytest.raises(ValueError, match="requires y to be passed"):
        encoder.fit(X, None)
    for operator in (Delays([0, 1]).apply(X), RidgeCV().design(X)):
        with pytest.raises(ValueError, match=f"X is a {type(operator).__name__}; expected an array"):
            encoder.fit(operator, Y)
        with pytest.raises(ValueError, match=f"X is a {type(operator).__name__}; expected an array"):
            clone(encoder).fit(X, Y).predict_by_band(operator)


def test_infinity_on_disk_is_named_by_its_unit(tmp_path):
    X, Y = simulate(40, (4, 6), 30)
    Y[3, 17] = np.inf
    np.save(tmp_path / "Y.npy", Y)
    with pytest.raises(ValueError, match="infinity in unit 17"):
        BandedRidgeCV([4, 6], n_iter=3, max_memory=1).fit(X, np.load(tmp_path / "Y.npy", mmap_mode="r"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("sizes", [(4, 6), (40, 60)])
def test_cuda_device_gives_the_same(sizes):
    X, Y = simulate(50, sizes, 7)
    here, there = (BandedRidgeCV(sizes, n_iter=6, device=device).fit(X, Y) for device in ("cpu", "cuda"))
    np.testing.assert_array_equal(there.gamma_, here.gamma_)
    np.testing.assert_allclose(there.coef_, here.coef_, atol=1e-9)
    np.testing.assert_allclose(there.predict_by_band(X), here.predict_by_band(X), atol=1e-9)


def test_silent_when_all_is_well():
    X, Y = simulate(60, (4, 6), 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BandedRidgeCV([4, 6], n_iter=6, score="r2").fit(X, Y)


def test_partial_fractions_that_fail_are_counted_once(monkeypatch):
    """The units of all sets of shares in which predictions disagreed, without those that hold NaN."""
    X, Y = simulate(40, (4, 6), 5)
    Y[0, 2] = np.nan
    expected = BandedRidgeCV([4, 6], [0.1, 1.0, 1e5], n_iter=3)
    with pytest.warns(UserWarning, match="hold NaN"):
        expected.fit(X, Y)
    monkeypatch.setattr(module, "make_plan", lambda *_: Plan("fractions", by_rows=True))
    monkeypatch.setattr("neuralign.encoders.linear.stream._Scores.agree", lambda *_: False)
    encoder = clone(expected)
    with pytest.warns(UserWarning, match="scores of 4 units were computed from predictions") as caught:
        encoder.fit(X, Y)
    assert len([one for one in caught if "from predictions" in str(one.message)]) == 1
    np.testing.assert_allclose(encoder.cv_score_, expected.cv_score_, atol=1e-9)
