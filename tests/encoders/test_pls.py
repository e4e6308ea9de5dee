import pickle
import warnings

import joblib
import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from sklearn.base import clone
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, KFold, LeaveOneOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders.linear import low_rank, pls
from neuralign.encoders.linear.low_rank import choose_first, nested_scores
from neuralign.encoders.linear.pls import PLSRegression, dominant_eigenvector


@pytest.mark.filterwarnings("ignore:n_components=.* is more than")
@pytest.mark.filterwarnings("ignore:.* have no cross-validated score")
@parametrize_with_checks(
    [PLSRegression(), PLSRegression(2, scale=True), PLSRegression([1, 2, 3], cv=2, score="r2", per_unit=True)]
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def simulate(n=60, p=10, v=6, noise=1.0, seed=0, dtype=np.float64):
    """Responses through a few latent directions; features correlate."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) @ np.diag(np.logspace(0, -0.7, p)) + 2.0
    Y = X @ rng.standard_normal((p, v)) + noise * rng.standard_normal((n, v)) + 3.0
    return X.astype(dtype), Y.astype(dtype)


def slow_pls(X, Y, count, scale=False):
    """Weights at every number of components, by deflation of both sides with singular vectors."""
    x_size = X.std(0, ddof=1) if scale else np.ones(X.shape[1])
    y_size = Y.std(0, ddof=1) if scale else np.ones(Y.shape[1])
    E, F = (X - X.mean(0)) / x_size, (Y - Y.mean(0)) / y_size
    W, P, Q, weights = [], [], [], []
    for _ in range(count):
        w = np.linalg.svd(E.T @ F, full_matrices=False)[0][:, 0]
        t = E @ w
        W, P, Q = [*W, w], [*P, E.T @ t / (t @ t)], [*Q, F.T @ t / (t @ t)]
        E, F = E - np.outer(t, P[-1]), F - np.outer(t, Q[-1])
        rotations = np.transpose(W) @ np.linalg.inv(np.array(P) @ np.transpose(W))
        weights.append(rotations @ np.array(Q) / x_size[:, None] * y_size)
    return weights


SHAPES = {
    "n>p, v<p": (60, 10, 4),
    "n>p, v>p": (60, 10, 25),
    "n>p, v>n": (60, 10, 90),
    "n<p, v<n": (30, 50, 5),
    "n<p, n<v<p": (20, 50, 40),
    "n<p, v>p": (20, 50, 80),
    "one unit": (60, 10, 1),
    "one unit, n<p": (30, 50, 1),
    "one feature": (40, 1, 5),
}


# Numbers


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_number_of_components_equals_the_slow_reference(shape, scale):
    X, Y = simulate(*shape)
    count = min(shape[0] - 1, shape[1], 15)
    encoder = PLSRegression(count, scale=scale).fit(X, Y)
    for k, weights in enumerate(slow_pls(X, Y, count, scale), start=1):
        np.testing.assert_allclose(encoder.weights(k), weights, rtol=0, atol=1e-9 * np.abs(weights).max())
        expected = (X - X.mean(0)) @ weights + Y.mean(0)
        np.testing.assert_allclose(encoder.predict(X, k), expected, atol=1e-8)
    np.testing.assert_array_equal(encoder.coef_, encoder.weights(count))
    np.testing.assert_allclose(X @ encoder.coef_ + encoder.intercept_, encoder.predict(X), atol=1e-9)


@pytest.mark.parametrize("shape", [(60, 10), (30, 50)])
def test_one_unit_is_least_squares_on_a_krylov_space(shape):
    X, Y = simulate(*shape, v=1)
    y = Y[:, 0]
    F, z = X - X.mean(0), y - y.mean()
    encoder = PLSRegression(6).fit(X, y)
    basis = np.zeros((shape[1], 0))
    vector = F.T @ z
    for k in range(1, 7):
        vector = vector - basis @ (basis.T @ vector)
        basis = np.hstack([basis, (vector / np.linalg.norm(vector))[:, None]])
        weights = basis @ np.linalg.lstsq(F @ basis, z, rcond=None)[0]
        np.testing.assert_allclose(encoder.weights(k), weights, atol=1e-9)
        vector = F.T @ (F @ basis[:, -1])


@pytest.mark.parametrize("v", [1, 4, 30])
def test_all_components_are_least_squares(v):
    X, Y = simulate(v=v)
    encoder = PLSRegression(10).fit(X, Y)
    weights = np.linalg.lstsq(X - X.mean(0), Y - Y.mean(0), rcond=None)[0]
    np.testing.assert_allclose(encoder.coef_, weights, atol=1e-10)


@pytest.mark.parametrize("shape", [(60, 10, 90), (30, 50, 5)])
def test_scores_of_training_rows_are_orthonormal(shape):
    X, Y = simulate(*shape)
    encoder = PLSRegression(9).fit(X, Y)
    T = (X - encoder.feature_mean_) @ encoder.rotations_
    np.testing.assert_allclose(T.T @ T, np.eye(9), atol=1e-10)
    np.testing.assert_allclose(encoder.loadings_, T.T @ Y, atol=1e-9)


def test_result_does_not_depend_on_blocks(monkeypatch):
    for shape in [(60, 10, 23), (20, 50, 33), (30, 50, 5)]:
        X, Y = simulate(*shape)
        whole = PLSRegression([2, 5]).fit(X, Y)
        with monkeypatch.context() as context:
            context.setattr(low_rank, "BLOCK", 700)
            blocks = PLSRegression([2, 5]).fit(X, Y)
            np.testing.assert_allclose(blocks.predict(X), whole.predict(X), rtol=1e-9)
        np.testing.assert_allclose(blocks.cv_scores_, whole.cv_scores_, atol=1e-10)
        np.testing.assert_allclose(blocks.coef_, whole.coef_, atol=1e-10)


@pytest.mark.parametrize("size", [1, 2, 7, 150])
@pytest.mark.parametrize("gap", [1.0, 1e-3])
def test_dominant_eigenvector(size, gap):
    rng = np.random.default_rng(size)
    axes = np.linalg.qr(rng.standard_normal((size, size)))[0]
    values = np.r_[np.linspace(0, 3, size - 1), 3 + gap][-size:]
    A = torch.from_numpy((axes * values) @ axes.T)
    value, vector = dominant_eigenvector(A.__matmul__, A[0])
    assert value == pytest.approx(3 + gap, rel=1e-12)
    assert abs(float(vector @ torch.from_numpy(axes[:, -1].copy()))) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(A @ vector, value * vector, atol=1e-11)


def test_dominant_eigenvector_is_not_fooled_by_symmetry():
    """No column of a balanced design leads to the largest eigenvalue: each is an eigenvector of another."""
    A = torch.from_numpy(np.diag([1.0, 1.0, 5.0, 1.0]))
    assert dominant_eigenvector(A.__matmul__, A[0])[0] == pytest.approx(5.0)
    assert dominant_eigenvector(torch.zeros_like(A).__matmul__, A[0])[0] == 0.0


# Precision


@pytest.mark.parametrize("shape", [(60, 10, 4), (30, 50, 40)])
@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
def test_single_precision_and_offsets(shape, offset):
    X, Y = simulate(*shape, dtype=np.float32)
    X = X + np.float32(offset)
    single, double = PLSRegression(5).fit(X, Y), PLSRegression(5).fit(X.astype(np.float64), Y)
    assert single.coef_.dtype == single.intercept_.dtype == single.predict(X).dtype == np.float32
    assert single.rotations_.dtype == single.loadings_.dtype == np.float32
    assert double.predict(X).dtype == np.float64
    spread = double.predict(X).std(axis=0)
    assert (np.abs(single.predict(X) - double.predict(X)) < 1e-5 * spread).all()


@pytest.mark.parametrize("shape", [(100, 40, 5), (100, 40, 80), (60, 200, 5), (60, 200, 80)])
def test_features_whose_singular_values_span_five_decades(shape):
    n, p, v = shape
    rng = np.random.default_rng(0)
    r = min(n, p)
    X = rng.standard_normal((n, r)) * np.logspace(0, -5, r) @ np.linalg.qr(rng.standard_normal((p, r)))[0].T
    Y = X @ rng.standard_normal((p, v)) + 0.1 * rng.standard_normal((n, v))
    encoder = PLSRegression(25).fit(X, Y)
    T = (X - encoder.feature_mean_) @ encoder.rotations_
    np.testing.assert_allclose(T.T @ T, np.eye(25), atol=1e-8)
    for k, weights in enumerate(slow_pls(X, Y, 25), start=1):
        np.testing.assert_allclose(encoder.predict(X, k), (X - X.mean(0)) @ weights + Y.mean(0), atol=1e-8)


@pytest.mark.parametrize("scale_x, scale_y", [(1e-6, 1.0), (1.0, 1e-30), (1e6, 1e9)])
def test_units_of_measurement_do_not_matter(scale_x, scale_y):
    for v in (4, 30):
        X, Y = simulate(v=v)
        plain = PLSRegression(5).fit(X, Y)
        scaled = PLSRegression(5).fit(X * scale_x, Y * scale_y)
        np.testing.assert_allclose(scaled.predict(X * scale_x) / scale_y, plain.predict(X), rtol=1e-9)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("p", [10, 80])
def test_constant_column_changes_nothing(scale, p):
    X, Y = simulate(p=p)
    with_constant = np.hstack([X, np.full((60, 1), 0.1)])
    plain, more = PLSRegression(4, scale=scale).fit(X, Y), PLSRegression(4, scale=scale).fit(with_constant, Y)
    np.testing.assert_allclose(more.coef_[:-1], plain.coef_, atol=1e-10)
    np.testing.assert_array_equal(more.coef_[-1], np.zeros(6))


# Where components end


@pytest.mark.parametrize("v", [1, 3, 40])
def test_stops_at_the_rank_of_the_features(v):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 4)) @ rng.standard_normal((4, 12))
    Y = X @ rng.standard_normal((12, v)) + rng.standard_normal((50, v))
    with pytest.warns(UserWarning, match="n_components=9 is more than the 4 that the rank") as caught:
        encoder = PLSRegression(9).fit(X, Y)
    assert len(caught) == 1
    assert encoder.n_components_ == 4
    assert encoder.rotations_.shape == (12, 4)
    weights = np.linalg.pinv(X - X.mean(0), rcond=1e-10) @ (Y - Y.mean(0))
    np.testing.assert_allclose(encoder.coef_, weights, atol=1e-9)
    np.testing.assert_array_equal(encoder.predict(X, 7), encoder.predict(X))


@pytest.mark.parametrize("copies", [1, 20])
def test_stops_where_the_covariance_is_used_up(copies):
    """For orthogonal features of one size the first component of one unit is already least squares."""
    X = hadamard(16)[:, 1:9].astype(float)
    y = np.random.default_rng(0).standard_normal(16)
    with pytest.warns(UserWarning, match="n_components=5 is more than the 1"):
        encoder = PLSRegression(5).fit(X, np.tile(y[:, None], copies))
    np.testing.assert_allclose(encoder.coef_[:, 0], X.T @ y / 16, atol=1e-12)


def test_no_information_in_features_or_responses():
    X, Y = simulate()
    for features, responses in [(np.full((60, 3), 0.1), Y), (X, np.full((60, 4), 0.1))]:
        with pytest.warns(UserWarning, match="n_components=3 is more than the 0"):
            encoder = PLSRegression(3).fit(features, responses)
        assert encoder.n_components_ == 0
        np.testing.assert_allclose(encoder.predict(features), np.tile(responses.mean(0), (60, 1)))
        assert not encoder.coef_.any()


# The number of components


def slow_cv(X, Y, folds, counts, metric):
    table = np.full((len(folds), len(counts), Y.shape[1]), np.nan)
    for i, (train, test) in enumerate(folds):
        weights = slow_pls(X[train], Y[train], max(counts))
        for j, k in enumerate(counts):
            predicted = (X[test] - X[train].mean(0)) @ weights[k - 1] + Y[train].mean(0)
            for u in range(Y.shape[1]):
                if metric == "r":
                    table[i, j, u] = np.corrcoef(predicted[:, u], Y[test, u])[0, 1]
                else:
                    table[i, j, u] = r2_score(Y[test, u], predicted[:, u])
    return table.mean(0)


@pytest.mark.parametrize("metric", ["r", "r2"])
@pytest.mark.parametrize("shape", [(60, 10, 4), (40, 60, 50), (60, 10, 1)])
def test_cross_validated_scores_equal_the_slow_reference(shape, metric):
    X, Y = simulate(*shape, noise=3.0)
    groups = np.arange(len(X)) // 4
    counts = [1, 3, 4, 8]
    expected = slow_cv(X, Y, list(GroupKFold(4).split(X, groups=groups)), counts, metric)
    encoder = PLSRegression([4, 1, 8, 3], cv=4, score=metric).fit(X, Y, groups=groups)
    np.testing.assert_array_equal(encoder.counts_, counts)
    np.testing.assert_allclose(encoder.cv_scores_, expected, atol=1e-9)
    best = expected.mean(1).argmax()
    assert encoder.n_components_ == counts[best]
    np.testing.assert_allclose(encoder.cv_score_, expected[best], atol=1e-9)
    each = PLSRegression(counts, cv=4, score=metric, per_unit=True).fit(X, Y, groups=groups)
    np.testing.assert_array_equal(each.n_components_, np.take(counts, expected.argmax(0)))
    np.testing.assert_allclose(each.cv_score_, expected.max(0), atol=1e-9)
    for u, k in enumerate(each.n_components_):
        np.testing.assert_allclose(each.predict(X)[:, u], each.predict(X, int(k))[:, u], atol=1e-12)
        np.testing.assert_allclose(each.coef_[:, u], each.weights(int(k))[:, u], atol=1e-12)
    np.testing.assert_allclose(X @ each.coef_ + each.intercept_, each.predict(X), atol=1e-9)


def test_finds_the_number_of_simulated_components():
    """Three latent directions, shared by the units, carry all that the features know."""
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((300, 3))
    X = latent @ np.linalg.qr(rng.standard_normal((40, 3)))[0].T * 10 + rng.standard_normal((300, 40))
    Y = latent @ rng.standard_normal((3, 20)) + rng.standard_normal((300, 20))
    encoder = PLSRegression(range(1, 11), score="r2").fit(X, Y)
    assert encoder.n_components_ == 3
    assert encoder.cv_score_.mean() > encoder.cv_scores_[[0, 9]].mean(1).max()


def test_ties_go_to_fewer_components():
    nan = np.nan
    table = np.array([[0.5, 0.1, nan, nan], [0.5 + 1e-9, 0.3, nan, 0.2], [0.4, 0.3, nan, nan]])
    np.testing.assert_array_equal(choose_first(table, 1e-6), [0, 1, 0, 1])
    X, Y = simulate(p=1)
    with pytest.warns(UserWarning, match="n_components=3 is more than the 1"):
        assert PLSRegression([1, 2, 3]).fit(X, Y).n_components_ == 1


@pytest.mark.parametrize("shape", [(60, 6), (60, 90)])
def test_rows_outside_a_fold_cannot_reach_its_scores(shape):
    rng = np.random.default_rng(1)
    n, p = shape
    X, Y = rng.standard_normal((n, p)), rng.standard_normal((n, 6))
    folds = [(np.arange(40), np.arange(40, n))]
    X_more = np.vstack([X, 1e4 * rng.standard_normal((3, p)) * np.arange(1, p + 1)])
    Y_more = np.vstack([Y, 1e4 * rng.standard_normal((3, 6))])
    encoder = PLSRegression([1, 2, 5], cv=folds, scale=True, score="r2")
    clean = clone(encoder).fit(X, Y).cv_scores_
    np.testing.assert_allclose(clone(encoder).fit(X_more, Y_more).cv_scores_, clean, rtol=1e-9, atol=1e-12)
    leaky = (X_more - X_more.mean(0)) / X_more.std(0)  # the same comparison catches a leak
    leaked = clone(encoder).set_params(scale=False).fit(leaky, Y_more).cv_scores_
    assert np.abs(leaked - clean).max() > 0.01


@pytest.mark.parametrize("score", ["r", "r2"])
def test_nested_scores_without_components_or_variation(score):
    """The offset alone has no correlation; its R^2 is that of a constant."""
    Y = torch.tensor([[1.0, 0.1], [2.0, 0.1], [6.0, 0.1]], dtype=torch.float64)
    counts = np.array([1, 2])
    none = nested_scores(torch.zeros(3, 0, dtype=torch.float64), Y[:0], Y, counts, score)
    flat = nested_scores(torch.full((3, 1), 0.1, dtype=torch.float64), torch.zeros_like(Y[:1]), Y, counts, score)
    expected = np.nan if score == "r" else r2_score(Y[:, 0], np.zeros(3))
    for values in (none, flat):
        np.testing.assert_allclose(values[:, 0], [expected, expected])
        assert values[:, 1].isnan().all()


def test_components_that_cancel_have_no_correlation():
    rng = np.random.default_rng(0)
    t, weight = torch.from_numpy(rng.standard_normal((20, 1))), torch.from_numpy(rng.standard_normal((1, 50)))
    Y = torch.from_numpy(rng.standard_normal((20, 50)))
    values = nested_scores(torch.hstack([t, 3 * t]), torch.vstack([weight, -weight / 3]), Y, np.array([1, 2]), "r")
    assert values[0].isfinite().all()
    assert values[1].isnan().all()


def test_predictions_that_rounding_alone_moves_have_no_correlation():
    """Each test fold holds one category; its predictions are constant."""
    rng = np.random.default_rng(0)
    categories = np.repeat(np.arange(6), 10)
    X = np.eye(6)[categories] + rng.standard_normal(6) / 3
    folds = [(np.flatnonzero(categories != k), np.flatnonzero(categories == k)) for k in range(6)]
    with pytest.warns(UserWarning, match="3 of 3 units have no cross-validated score"):
        encoder = PLSRegression([1, 2], cv=folds).fit(X, rng.standard_normal((60, 3)))
    assert np.isnan(encoder.cv_scores_).all()
    assert np.isfinite(encoder.predict(X)).all()


# Units


@pytest.mark.parametrize("several", [False, True])
def test_units_with_nan_are_left_out_and_counted_once(several):
    X, Y = simulate()
    holed = Y.copy()
    holed[3, 1] = holed[:, 4] = np.nan
    kept = [0, 2, 3, 5]
    encoder = PLSRegression([1, 2, 3] if several else 3, per_unit=True)
    with pytest.warns(UserWarning, match="2 of 6 units hold NaN") as caught:
        encoder.fit(X, holed)
    assert len(caught) == 1
    whole = PLSRegression([1, 2, 3] if several else 3, per_unit=True).fit(X, Y[:, kept])
    for name in ("coef_", "intercept_", "loadings_", "response_mean_") + ("cv_scores_", "cv_score_") * several:
        assert np.isnan(getattr(encoder, name)[..., [1, 4]]).all()
        np.testing.assert_allclose(getattr(encoder, name)[..., kept], getattr(whole, name))
    for k in (None, 2):
        assert np.isnan(encoder.predict(X, k)[:, [1, 4]]).all()
        np.testing.assert_allclose(encoder.predict(X, k)[:, kept], whole.predict(X, k))
    if several:
        np.testing.assert_array_equal(encoder.n_components_[[1, 4]], [0, 0])
        np.testing.assert_array_equal(encoder.n_components_[kept], whole.n_components_)
    assert encoder.score(X, holed) == pytest.approx(whole.score(X, Y[:, kept]))


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("v", [6, 70])
def test_constant_units_are_predicted_as_their_constant(scale, v):
    X, Y = simulate(v=v)
    flat = Y.copy()
    flat[:, 2] = 0.1
    with pytest.warns(UserWarning, match=f"1 of {v} units have no cross-validated score") as caught:
        encoder = PLSRegression([1, 3], scale=scale).fit(X, flat)
    assert len(caught) == 1
    np.testing.assert_array_equal(encoder.predict(X)[:, 2], np.full(60, 0.1))
    assert np.isnan(encoder.cv_score_[2])
    others = np.arange(v) != 2
    without = PLSRegression([1, 3], scale=scale).fit(X, Y[:, others])
    np.testing.assert_allclose(encoder.coef_[:, others], without.coef_, atol=1e-10)


def test_vector_is_one_unit_without_axis():
    X, Y = simulate()
    for parameters in ({"n_components": 3}, {"n_components": [1, 2, 3], "per_unit": True}, {"n_components": [2]}):
        whole, single = PLSRegression(**parameters).fit(X, Y[:, :1]), PLSRegression(**parameters).fit(X, Y[:, 0])
        assert single.coef_.shape == (10,)
        assert single.predict(X).shape == (60,)
        assert np.ndim(single.intercept_) == np.ndim(single.response_mean_) == np.ndim(single.n_components_) == 0
        assert whole.predict(X).shape == (60, 1)
        np.testing.assert_allclose(single.predict(X), whole.predict(X)[:, 0], rtol=1e-12)
    assert single.cv_scores_.shape == (1,)
    assert np.ndim(single.cv_score_) == 0


# The estimator


def test_inputs_stay_untouched_and_results_repeat():
    X, Y = simulate()
    expected = PLSRegression(4).fit(X, Y).coef_
    X_before, Y_before = X.copy(), Y.copy()
    X.setflags(write=False)
    Y.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(PLSRegression(4).fit(X, Y).coef_, expected)
    np.testing.assert_array_equal(X, X_before)
    np.testing.assert_array_equal(Y, Y_before)


def test_nothing_of_an_earlier_fit_stays():
    X, Y = simulate()
    encoder = PLSRegression([1, 2]).fit(X, Y).set_params(n_components=3).fit(X, Y)
    assert not hasattr(encoder, "cv_scores_") and not hasattr(encoder, "cv_score_")
    np.testing.assert_array_equal(encoder.counts_, [3])


def test_memory_mapped_estimator_predicts_without_a_warning(tmp_path):
    X, Y = simulate()
    encoder = PLSRegression(4).fit(X, Y)
    joblib.dump(encoder, tmp_path / "encoder.joblib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = joblib.load(tmp_path / "encoder.joblib", mmap_mode="r")
        np.testing.assert_array_equal(mapped.predict(X), encoder.predict(X))


def test_clone_pickle_pipeline_score():
    X, Y = simulate()
    encoder = PLSRegression([1, 2], score="r2", cv=KFold(3)).fit(X, Y)
    assert clone(encoder).get_params()["score"] == "r2"
    assert "score='r2'" in repr(encoder)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encoder)).predict(X), encoder.predict(X))
    assert encoder.score(X, Y) == pytest.approx(r2_score(Y, encoder.predict(X)))
    pipeline = make_pipeline(StandardScaler(), PLSRegression([1, 2]))
    assert pipeline.fit(X, Y, plsregression__groups=np.arange(60) // 6).predict(X).shape == Y.shape


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"n_components": 0}, "n_components=0: expected a whole number from 1"),
        ({"n_components": 2.5}, "n_components=2.5"),
        ({"n_components": True}, "n_components=True"),
        ({"n_components": []}, "n_components="),
        ({"n_components": [2, 0]}, "n_components="),
        ({"n_components": "many"}, "n_components='many'"),
        ({"n_components": [1, 2], "score": "r3"}, "score='r3' is unknown"),
        ({"n_components": [1, 2], "cv": 1}, "cv=1: the number of folds"),
        ({"n_components": [1, 2], "cv": LeaveOneOut()}, "test folds of one row"),
        ({"device": "gpu"}, "device='gpu'"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    X, Y = simulate()
    with pytest.raises(ValueError, match=message):
        PLSRegression(**parameters).fit(X, Y)


def test_data_out_of_range():
    X, Y = simulate()
    encoder = PLSRegression([1, 3])
    with pytest.raises(ValueError, match=r"X has 3 dimensions \(shape \(60, 2, 5\)\).*flatten the tokens"):
        encoder.fit(X.reshape(60, 2, 5), Y)
    with pytest.raises(ValueError, match="X has 60 rows and Y has 59"):
        encoder.fit(X, Y[:-1])
    with pytest.raises(ValueError, match=r"groups has shape \(59,\); expected \(60,\)"):
        encoder.fit(X, Y, groups=np.arange(59))
    with pytest.raises(ValueError, match="contains infinity"):
        encoder.fit(X, np.where(np.arange(6) == 1, np.inf, Y))
    with pytest.raises(ValueError, match="every unit of Y"):
        encoder.fit(X, np.full_like(Y, np.nan))
    encoder.fit(X, Y).set_params(n_components=9)  # what counts is what was fitted
    for wrong in (0, 4, 1.5, True):
        with pytest.raises(ValueError, match="n_components=.*: expected a whole number from 1 to 3"):
            encoder.predict(X, n_components=wrong)
    with pytest.raises(ValueError, match=r"y has shape \(60, 4\)"):
        encoder.score(X, Y[:, :4])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("shape", [(60, 10, 90), (30, 50, 5)])
def test_cuda_device_gives_the_same(shape):
    X, Y = simulate(*shape)
    here, there = (PLSRegression([2, 5], device=device).fit(X, Y) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(there.cv_scores_, here.cv_scores_, atol=1e-9)
    np.testing.assert_allclose(there.coef_, here.coef_, atol=1e-9)
    np.testing.assert_allclose(there.predict(X), here.predict(X), atol=1e-9)


def test_principal_axes_rebuild_the_features_in_both_forms():
    X = torch.from_numpy(simulate(30, 31)[0])
    rows = torch.arange(30)
    dual = pls.principal_axes(X, rows, centre=True, scale=True)
    primal = pls.principal_axes(X[:, :20], rows, centre=True, scale=True)
    assert dual.dual and not primal.dual
    for axes, table in ((dual, X), (primal, X[:, :20])):
        F = (table - table.mean(0)) / table.std(0)
        torch.testing.assert_close((axes.left * axes.singular) @ (axes.left * axes.singular).T, F @ F.T)
        torch.testing.assert_close(axes.project(rows), axes.left)
        torch.testing.assert_close(
            (table - table.mean(0)) @ axes.weights(torch.eye(len(axes.singular), dtype=torch.float64)), axes.left
        )
