import pickle
import warnings

import joblib
import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, KFold, LeaveOneOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders.linear import low_rank
from neuralign.encoders.linear.reduced_rank import ReducedRankRidge

# Grids are kept short here; the warning has a test of its own.
pytestmark = pytest.mark.filterwarnings("ignore:alpha_=.* lies at an end of the grid")


@pytest.mark.filterwarnings("ignore:.* have no cross-validated score")
@pytest.mark.filterwarnings("ignore:ranks holds")
@parametrize_with_checks(
    [ReducedRankRidge(), ReducedRankRidge([0.1, 10.0], ranks=[1, 3], cv=2, score="r", fit_intercept=False)]
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def simulate(n=60, p=10, v=6, rank=2, noise=1.0, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) @ np.diag(np.logspace(0, -0.5, p)) + 2.0
    weights = rng.standard_normal((p, rank)) @ rng.standard_normal((rank, v))
    Y = X @ weights + noise * rng.standard_normal((n, v)) + 3.0
    return X.astype(dtype), Y.astype(dtype)


def slow_weights(X, Y, alpha, rank, intercept=True):
    """Least squares with rows for the penalty added to the data, its fit cut to a rank."""
    F, Z = (X - X.mean(0), Y - Y.mean(0)) if intercept else (X, Y)
    p, v = X.shape[1], Y.shape[1]
    augmented = np.vstack([F, np.sqrt(alpha) * np.eye(p)])
    ridge = np.linalg.lstsq(augmented, np.vstack([Z, np.zeros((p, v))]), rcond=None)[0]
    axes = np.linalg.svd(augmented @ ridge, full_matrices=False)[2][:rank]
    return ridge @ axes.T @ axes


SHAPES = {
    "n>p, v<p": (60, 10, 4),
    "n>p, v>p": (60, 10, 25),
    "n>p, v>n": (60, 10, 90),
    "n<p, v<n": (30, 50, 5),
    "n<p, n<v<p": (20, 50, 40),
    "n<p, v>p": (20, 50, 80),
    "one unit": (60, 10, 1),
    "one feature": (40, 1, 5),
}


# Numbers


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_weights_equal_the_slow_reference(shape, intercept):
    X, Y = simulate(*shape)
    most = min(shape[0] - intercept, *shape[1:])
    for rank in {1, min(3, most), most}:
        for alpha in (1e-3, 1.0, 100.0):
            encoder = ReducedRankRidge([alpha], rank, fit_intercept=intercept).fit(X, Y)
            expected = slow_weights(X, Y, alpha, rank, intercept)
            assert (encoder.alpha_, encoder.rank_) == (alpha, rank)
            np.testing.assert_allclose(encoder.coef_, expected, atol=1e-10 * max(1, np.abs(expected).max()))
            offset = (Y.mean(0) - X.mean(0) @ expected) * intercept
            np.testing.assert_allclose(encoder.intercept_, offset, atol=1e-9)
            np.testing.assert_allclose(encoder.predict(X), X @ expected + offset, atol=1e-9)
            assert encoder.left_.shape == (shape[1], rank)
            np.testing.assert_allclose(encoder.right_ @ encoder.right_.T, np.eye(rank), atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 10, 25), (30, 50, 5)])
def test_no_weights_of_that_rank_do_better(shape):
    """Alternating ridge regressions of the two factors, from random starts, come down to our minimum."""
    X, Y = simulate(*shape, noise=3.0)
    alpha, rank = 5.0, 2
    encoder = ReducedRankRidge([alpha], rank).fit(X, Y)
    F, Z = X - X.mean(0), Y - Y.mean(0)

    def loss(B):
        return ((Z - F @ B) ** 2).sum() + alpha * (B**2).sum()

    solved = np.linalg.solve(F.T @ F + alpha * np.eye(shape[1]), F.T @ Z)
    found = []
    for seed in range(3):
        right = np.linalg.qr(np.random.default_rng(seed).standard_normal((shape[2], rank)))[0].T
        for _ in range(3000):
            left = solved @ right.T  # the best left factor for orthonormal rows
            right = np.linalg.solve(left.T @ (F.T @ F + alpha * np.eye(shape[1])) @ left, left.T @ F.T @ Z)
            right = np.linalg.qr(right.T)[0].T
        found.append(loss(solved @ right.T @ right))
    assert loss(encoder.coef_) == pytest.approx(min(found), rel=1e-9)
    assert loss(slow_weights(X, Y, alpha, 1)) > loss(encoder.coef_)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_full_rank_is_ridge_regression(shape):
    X, Y = simulate(*shape)
    encoder = ReducedRankRidge([10.0], min(shape[0] - 1, *shape[1:])).fit(X, Y)
    expected = Ridge(10.0).fit(X, Y)
    np.testing.assert_allclose(encoder.coef_, expected.coef_.reshape(shape[2], -1).T, atol=1e-10)
    np.testing.assert_allclose(encoder.predict(X), expected.predict(X).reshape(len(X), -1), atol=1e-9)


def test_no_penalty_is_classical_reduced_rank_regression():
    X, Y = simulate()
    F, Z = X - X.mean(0), Y - Y.mean(0)
    fitted = F @ np.linalg.pinv(F) @ Z
    axes = np.linalg.eigh(Z.T @ fitted)[1][:, -2:]
    expected = np.linalg.pinv(F) @ Z @ axes @ axes.T
    np.testing.assert_allclose(ReducedRankRidge([1e-10], 2).fit(X, Y).coef_, expected, atol=1e-9)


@pytest.mark.parametrize("score", ["r", "r2"])
@pytest.mark.parametrize("shape", [(60, 10, 4), (40, 60, 50), (60, 10, 1)])
def test_cross_validated_scores_equal_the_slow_reference(shape, score):
    X, Y = simulate(*shape, noise=4.0)
    groups = np.arange(len(X)) // 4
    alphas, ranks = [0.1, 10.0, 1000.0], [1, 2, 4][: shape[2]]
    table = np.zeros((3, len(ranks)))
    for train, test in GroupKFold(4).split(X, groups=groups):
        for i, alpha in enumerate(alphas):
            for j, rank in enumerate(ranks):
                weights = slow_weights(X[train], Y[train], alpha, rank)
                predicted = (X[test] - X[train].mean(0)) @ weights + Y[train].mean(0)
                if score == "r":
                    units = [np.corrcoef(predicted[:, u], Y[test, u])[0, 1] for u in range(shape[2])]
                else:
                    units = r2_score(Y[test], predicted, multioutput="raw_values")
                table[i, j] += np.mean(units) / 4
    encoder = ReducedRankRidge(alphas, ranks, cv=4, score=score).fit(X, Y, groups=groups)
    np.testing.assert_allclose(encoder.cv_scores_, table, atol=1e-9)
    i, j = np.unravel_index(table.argmax(), table.shape)
    assert (encoder.alpha_, encoder.rank_) == (alphas[i], ranks[j])
    assert encoder.cv_score_ == pytest.approx(table.max(), abs=1e-9)
    np.testing.assert_allclose(encoder.coef_, slow_weights(X, Y, alphas[i], ranks[j]), atol=1e-10)


@pytest.mark.parametrize("shape", [(300, 20, 30), (150, 200, 30), (300, 20, 400)])
def test_finds_the_simulated_rank_and_beats_ridge(shape):
    X, Y = simulate(*shape, rank=3, noise=4.0)
    encoder = ReducedRankRidge(ranks=range(1, 16)).fit(X, Y)
    assert encoder.rank_ == 3
    fresh = simulate(*shape, rank=3, noise=0.0)
    mended = {r: ReducedRankRidge([encoder.alpha_], r).fit(X, Y) for r in (3, min(shape[1:]))}
    errors = [np.mean((model.predict(fresh[0]) - fresh[1]) ** 2) for model in mended.values()]
    assert errors[0] < 0.7 * errors[1]


def test_result_does_not_depend_on_blocks(monkeypatch):
    for shape in [(60, 10, 23), (20, 50, 33), (30, 50, 5)]:
        X, Y = simulate(*shape)
        whole = ReducedRankRidge([1.0, 10.0], [1, 3]).fit(X, Y)
        with monkeypatch.context() as context:
            context.setattr(low_rank, "BLOCK", 700)
            blocks = ReducedRankRidge([1.0, 10.0], [1, 3]).fit(X, Y)
            np.testing.assert_allclose(blocks.predict(X), whole.predict(X), rtol=1e-9)
        np.testing.assert_allclose(blocks.cv_scores_, whole.cv_scores_, atol=1e-10)
        np.testing.assert_allclose(blocks.coef_, whole.coef_, atol=1e-10)


# Precision and degenerate data


@pytest.mark.parametrize("shape", [(60, 10, 4), (30, 50, 40)])
@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
def test_single_precision_and_offsets(shape, offset):
    X, Y = simulate(*shape, dtype=np.float32)
    X = X + np.float32(offset)
    single, double = (ReducedRankRidge([1.0, 10.0], [1, 2]).fit(X.astype(kind), Y) for kind in (np.float32, float))
    assert single.coef_.dtype == single.intercept_.dtype == single.predict(X).dtype == np.float32
    assert single.left_.dtype == single.right_.dtype == np.float32
    assert double.predict(X).dtype == np.float64
    assert (single.alpha_, single.rank_) == (double.alpha_, double.rank_)
    spread = double.predict(X).std(axis=0)
    assert (np.abs(single.predict(X) - double.predict(X)) < 1e-5 * spread).all()


def test_predictions_too_small_to_square_keep_their_correlation():
    X, Y = simulate()
    encoder = ReducedRankRidge([1e20, 1e30, 1e60], [1, 3], score="r").fit(X, Y)
    np.testing.assert_allclose(encoder.cv_scores_[1:], encoder.cv_scores_[[0, 0]], atol=1e-9)
    assert (encoder.alpha_, np.isfinite(encoder.coef_).all()) == (1e60, True)  # ties go to the larger alpha


def test_duplicated_and_constant_columns():
    X, Y = simulate()
    once = ReducedRankRidge([2.0], 2).fit(X, Y)
    more = ReducedRankRidge([4.0], 2).fit(np.hstack([X, X, np.full((60, 1), 0.1)]), Y)
    np.testing.assert_allclose(more.coef_, np.vstack([once.coef_ / 2, once.coef_ / 2, np.zeros((1, 6))]), atol=1e-10)
    np.testing.assert_allclose(more.cv_scores_, once.cv_scores_, atol=1e-10)


@pytest.mark.parametrize("n, p, v", [(60, 12, 3), (60, 12, 30), (20, 50, 3), (20, 50, 90)])
def test_directions_that_the_features_lack_carry_no_weight(n, p, v):
    """Of rank 4, and hardly penalised: rounding divided by rounding must not become a weight."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 4)) @ rng.standard_normal((4, p))
    Y = X @ rng.standard_normal((p, v)) + rng.standard_normal((n, v))
    encoder = ReducedRankRidge([1e-14], 3).fit(X, Y)
    F = X - X.mean(0)
    weights = np.linalg.pinv(F, rcond=1e-10) @ (Y - Y.mean(0))
    axes = np.linalg.svd(F @ weights, full_matrices=False)[2][:3]
    np.testing.assert_allclose(encoder.coef_, weights @ axes.T @ axes, atol=1e-8)
    assert encoder.cv_score_ > 0


def test_responses_of_lower_rank_than_asked_for():
    """Noiseless responses have two directions; further ones are rounding and change nothing."""
    X, Y = simulate(noise=0.0)
    low, high = ReducedRankRidge([1e-9], 2).fit(X, Y), ReducedRankRidge([1e-9], 5).fit(X, Y)
    np.testing.assert_allclose(high.predict(X), Y, atol=1e-8)
    np.testing.assert_allclose(high.coef_, low.coef_, atol=1e-8)


@pytest.mark.parametrize("v", [3, 80])
def test_fold_of_categories_never_trained_on_has_no_correlation(v):
    categories = np.tile(np.repeat(np.arange(9), 2), 4)
    X = 0.3 * hadamard(16)[categories]
    Y = np.random.default_rng(0).standard_normal((72, v))
    folds = [(np.flatnonzero(categories // 3 != k), np.flatnonzero(categories // 3 == k)) for k in range(3)]
    with pytest.warns(UserWarning, match=f"{v} of {v} units have no cross-validated score"):
        encoder = ReducedRankRidge([1.0, 10.0], [1, 2], cv=folds, score="r").fit(X, Y)
    assert np.isnan(encoder.cv_scores_).all()
    assert (encoder.rank_, encoder.alpha_) == (1, 10.0)  # the simplest
    assert np.isfinite(encoder.predict(X)).all()


def test_no_information_in_the_features():
    _, Y = simulate()
    with pytest.warns(UserWarning, match="6 of 6 units have no cross-validated score"):
        encoder = ReducedRankRidge(score="r").fit(np.full((60, 3), 0.1), Y)
    assert not encoder.coef_.any()
    np.testing.assert_allclose(encoder.predict(np.zeros((2, 3))), np.tile(Y.mean(0), (2, 1)))


@pytest.mark.parametrize("shape", [(60, 6), (60, 90)])
def test_rows_outside_a_fold_cannot_reach_its_scores(shape):
    rng = np.random.default_rng(1)
    n, p = shape
    X, Y = rng.standard_normal((n, p)), rng.standard_normal((n, 6))
    folds = [(np.arange(40), np.arange(40, n))]
    encoder = ReducedRankRidge([1.0, 10.0], [1, 3], cv=folds)
    clean = clone(encoder).fit(X, Y).cv_scores_
    X_more, Y_more = (np.vstack([A, 1e4 * rng.standard_normal((3, A.shape[1]))]) for A in (X, Y))
    np.testing.assert_allclose(clone(encoder).fit(X_more, Y_more).cv_scores_, clean, rtol=1e-9, atol=1e-12)


# Units


def test_units_with_nan_are_left_out_and_counted_once():
    X, Y = simulate()
    holed = Y.copy()
    holed[3, 1] = holed[:, 4] = np.nan
    kept = [0, 2, 3, 5]
    with pytest.warns(UserWarning, match="2 of 6 units hold NaN") as caught:
        encoder = ReducedRankRidge().fit(X, holed)
    assert len(caught) == 1
    whole = ReducedRankRidge().fit(X, Y[:, kept])
    assert (encoder.alpha_, encoder.rank_) == (whole.alpha_, whole.rank_)
    for name in ("coef_", "intercept_", "right_", "response_mean_"):
        assert np.isnan(getattr(encoder, name)[..., [1, 4]]).all()
        np.testing.assert_allclose(getattr(encoder, name)[..., kept], getattr(whole, name))
    assert np.isnan(encoder.predict(X)[:, [1, 4]]).all()
    np.testing.assert_allclose(encoder.predict(X)[:, kept], whole.predict(X))
    assert encoder.score(X, holed) == pytest.approx(whole.score(X, Y[:, kept]))


@pytest.mark.parametrize("v", [6, 70])
def test_constant_units_are_predicted_as_their_constant(v):
    X, Y = simulate(v=v)
    flat = Y.copy()
    flat[:, 2] = 0.1
    with pytest.warns(UserWarning, match=f"1 of {v} units have no cross-validated score") as caught:
        encoder = ReducedRankRidge(ranks=[1, 2, 4]).fit(X, flat)
    assert len(caught) == 1
    np.testing.assert_array_equal(encoder.predict(X)[:, 2], np.full(60, 0.1))
    others = np.arange(v) != 2
    without = ReducedRankRidge(ranks=[1, 2, 4]).fit(X, Y[:, others])
    np.testing.assert_allclose(encoder.cv_scores_, without.cv_scores_, atol=1e-10)
    np.testing.assert_allclose(encoder.coef_[:, others], without.coef_, atol=1e-10)


def test_vector_is_one_unit_without_axis():
    X, Y = simulate()
    whole, single = ReducedRankRidge().fit(X, Y[:, :1]), ReducedRankRidge().fit(X, Y[:, 0])
    assert single.coef_.shape == (10,)
    assert single.predict(X).shape == (60,)
    assert single.left_.shape == (10, 1)
    assert single.right_.shape == (1, 1)
    assert np.ndim(single.intercept_) == np.ndim(single.response_mean_) == 0
    assert whole.predict(X).shape == (60, 1)
    np.testing.assert_allclose(single.predict(X), whole.predict(X)[:, 0], rtol=1e-12)


# The estimator


def test_inputs_stay_untouched_and_results_repeat():
    X, Y = simulate()
    expected = ReducedRankRidge().fit(X, Y).coef_
    X_before, Y_before = X.copy(), Y.copy()
    X.setflags(write=False)
    Y.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(ReducedRankRidge().fit(X, Y).coef_, expected)
    np.testing.assert_array_equal(X, X_before)
    np.testing.assert_array_equal(Y, Y_before)


def test_memory_mapped_estimator_predicts_without_a_warning(tmp_path):
    X, Y = simulate()
    encoder = ReducedRankRidge([1.0]).fit(X, Y)
    joblib.dump(encoder, tmp_path / "encoder.joblib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = joblib.load(tmp_path / "encoder.joblib", mmap_mode="r")
        np.testing.assert_array_equal(mapped.predict(X), encoder.predict(X))


def test_clone_pickle_pipeline_score():
    X, Y = simulate()
    encoder = ReducedRankRidge([1.0, 10.0], score="r", cv=KFold(3)).fit(X, Y)
    assert clone(encoder).get_params()["score"] == "r"
    assert "score='r'" in repr(encoder)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encoder)).predict(X), encoder.predict(X))
    assert encoder.score(X, Y) == pytest.approx(r2_score(Y, encoder.predict(X)))
    pipeline = make_pipeline(StandardScaler(), ReducedRankRidge())
    assert pipeline.fit(X, Y, reducedrankridge__groups=np.arange(60) // 6).predict(X).shape == Y.shape


def test_ranks_default_to_all_and_end_at_the_full_rank():
    X, Y = simulate(noise=0.1, rank=6)
    encoder = ReducedRankRidge([1.0]).fit(X, Y)
    np.testing.assert_array_equal(encoder.ranks_, np.arange(1, 7))
    with pytest.warns(UserWarning, match="ranks holds 50; X and Y allow 6") as caught:
        beyond = ReducedRankRidge([1.0], [2, 50]).fit(X, Y)
    assert len(caught) == 1
    assert beyond.rank_ == encoder.rank_ == 6
    np.testing.assert_allclose(beyond.coef_, encoder.coef_, atol=1e-12)
    np.testing.assert_allclose(beyond.cv_scores_[0, 1], encoder.cv_scores_[0, 5])


@pytest.mark.filterwarnings("default:alpha_=.* lies at an end of the grid")
def test_one_warning_when_the_grid_ends_too_early():
    X, Y = simulate(n=40, p=30, noise=30.0)
    with pytest.warns(UserWarning, match=r"alpha_=10 lies at an end of the grid \(0.1 to 10\)") as caught:
        ReducedRankRidge([0.1, 10.0], 4).fit(*simulate(n=40, p=30, noise=5.0, rank=6))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ReducedRankRidge().fit(X, Y)
        ReducedRankRidge([0.01]).fit(X, Y)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"ranks": 0}, "ranks=0: expected a whole number from 1"),
        ({"ranks": 2.5}, "ranks=2.5"),
        ({"ranks": []}, "ranks="),
        ({"alphas": [1.0, 0.0]}, "alphas holds 0"),
        ({"alphas": [1.0, np.inf]}, "alphas holds inf"),
        ({"alphas": []}, "alphas is empty"),
        ({"alphas": "many"}, "alphas='many'"),
        ({"score": "r3"}, "score='r3' is unknown"),
        ({"cv": 1}, "cv=1: the number of folds"),
        ({"cv": LeaveOneOut()}, "test folds of one row"),
        ({"device": "gpu"}, "device='gpu'"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    X, Y = simulate()
    with pytest.raises(ValueError, match=message):
        ReducedRankRidge(**parameters).fit(X, Y)


def test_data_out_of_range():
    X, Y = simulate()
    encoder = ReducedRankRidge()
    with pytest.raises(ValueError, match=r"X has 3 dimensions \(shape \(60, 2, 5\)\).*flatten the tokens"):
        encoder.fit(X.reshape(60, 2, 5), Y)
    with pytest.raises(ValueError, match="X has 60 rows and Y has 59"):
        encoder.fit(X, Y[:-1])
    with pytest.raises(ValueError, match=r"groups has shape \(59,\); expected \(60,\)"):
        encoder.fit(X, Y, groups=np.arange(59))
    with pytest.raises(ValueError, match="every unit of Y"):
        encoder.fit(X, np.full_like(Y, np.nan))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("shape", [(60, 10, 90), (30, 50, 5)])
def test_cuda_device_gives_the_same(shape):
    X, Y = simulate(*shape)
    here, there = (ReducedRankRidge([1.0, 10.0], [1, 2], device=device).fit(X, Y) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(there.cv_scores_, here.cv_scores_, atol=1e-9)
    np.testing.assert_allclose(there.coef_, here.coef_, atol=1e-9)
