import pickle
import warnings

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    RepeatedKFold,
    ShuffleSplit,
    cross_val_predict,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders.linear.kernel import Kernel, KernelRidgeCV
from neuralign.encoders.linear.ridge import Ridge, RidgeCV
from neuralign.encoders.linear.stream import BlockFitter, make_plan

pytestmark = pytest.mark.filterwarnings("ignore:.*of the chosen alphas lie at an end of the grid")

HERE = torch.device("cpu")


@pytest.mark.filterwarnings("ignore:.* folds have fewer than 3 test rows", "ignore:.*test folds of two rows at most")
@parametrize_with_checks(
    [
        KernelRidgeCV(),
        KernelRidgeCV(kernel="rbf", fit_intercept=False),
        KernelRidgeCV(kernel="poly", degree=2, per_unit=False, score="r2"),
        KernelRidgeCV(kernel="precomputed"),
    ]
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def simulate(n=60, p=8, v=5, noise=1.0, seed=0, dtype=np.float64):
    """Units that are smooth functions of the features, not linear ones."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    Y = np.tanh(X @ rng.standard_normal((p, v))) + X[:, :1] ** 2 + noise * rng.standard_normal((n, v)) + 3.0
    return X.astype(dtype), Y.astype(dtype)


# What comes out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", ["linear", "poly", "rbf", "precomputed"])
def test_shapes_and_dtypes(kernel, dtype):
    X, Y = simulate(dtype=dtype)
    given = rbf_kernel(X).astype(dtype) if kernel == "precomputed" else X
    encoder = KernelRidgeCV([10.0, 0.1, 1.0], kernel, keep_scores=True, nested=True).fit(given, Y)
    assert encoder.dual_coef_.shape == (60, 5)
    assert encoder.dual_coef_.dtype == encoder.predict(given).dtype == dtype
    assert encoder.alpha_.shape == encoder.cv_score_.shape == encoder.nested_score_.shape == (5,)
    assert encoder.cv_scores_.shape == (3, 5)
    assert 0 <= encoder.edge_fraction_ <= 1
    np.testing.assert_array_equal(encoder.alphas_, [0.1, 1.0, 10.0])
    assert encoder.axes_.shape[0] == 60 and encoder.axes_.shape[1] == len(encoder.weights_)
    assert encoder.n_features_in_ == given.shape[1]
    if kernel == "precomputed":
        assert encoder.X_fit_ is None
    else:
        np.testing.assert_array_equal(encoder.X_fit_, X)
    np.testing.assert_allclose(encoder.response_mean_, Y.mean(0), rtol=1e-6)
    assert encoder.predict(given[:7]).shape == (7, 5)


def test_vector_is_one_unit_without_axis():
    X, Y = simulate()
    whole, single = KernelRidgeCV(kernel="rbf").fit(X, Y[:, :1]), KernelRidgeCV(kernel="rbf").fit(X, Y[:, 0])
    assert np.ndim(single.alpha_) == np.ndim(single.cv_score_) == 0
    assert single.dual_coef_.shape == single.predict(X).shape == (60,)
    np.testing.assert_array_equal(single.predict(X), whole.predict(X)[:, 0])


@pytest.mark.parametrize("kernel", ["linear", "poly", "rbf"])
def test_dual_coefficients_predict_from_the_kernel(kernel):
    """They sum to zero, so that the plain kernel and one number for each unit give the predictions."""
    X, Y = simulate()
    new = np.random.default_rng(1).standard_normal((9, 8))
    encoder = KernelRidgeCV([0.5], kernel, gamma=0.2, degree=2, coef0=0.5).fit(X, Y)
    products, across = {
        "linear": lambda: (X @ X.T, new @ X.T),
        "poly": lambda: (polynomial_kernel(X, None, 2, 0.2, 0.5), polynomial_kernel(new, X, 2, 0.2, 0.5)),
        "rbf": lambda: (rbf_kernel(X, None, 0.2), rbf_kernel(new, X, 0.2)),
    }[kernel]()
    dual = encoder.dual_coef_
    np.testing.assert_allclose(dual.sum(0), 0, atol=1e-10 * np.abs(dual).max())
    expected = Y.mean(0) + (across - products.mean(0)) @ dual
    np.testing.assert_allclose(encoder.predict(new), expected, rtol=1e-9)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("kernel", ["linear", "poly", "rbf"])
def test_result_does_not_depend_on_blocks(kernel, fit_intercept, monkeypatch):
    X, Y = simulate(v=23, p=150)
    how = {"kernel": kernel, "fit_intercept": fit_intercept, "gamma": 0.01, "degree": 2}
    new = np.random.default_rng(1).standard_normal((150, 150))
    whole = KernelRidgeCV(**how).fit(X, Y)
    widths = []
    fit = BlockFitter.fit

    def watched(self, values, part, index=None):
        widths.append(part.stop - part.start)
        return fit(self, values, part, index)

    monkeypatch.setattr(BlockFitter, "fit", watched)
    tiny = KernelRidgeCV(**how, max_memory=1).fit(X, Y)
    assert set(widths) == {1}
    np.testing.assert_array_equal(tiny.alpha_, whole.alpha_)
    np.testing.assert_allclose(tiny.cv_score_, whole.cv_score_, atol=1e-9)
    np.testing.assert_allclose(tiny.dual_coef_, whole.dual_coef_, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(tiny.predict(new), whole.predict(new), rtol=1e-9)


def test_clone_pickle_joblib_pipeline(tmp_path):
    X, Y = simulate()
    encoder = KernelRidgeCV([1.0, 10.0], "rbf", score="r2", cv=KFold(3)).fit(X, Y)
    assert clone(encoder).get_params()["score"] == "r2"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encoder)).predict(X), encoder.predict(X))
    joblib.dump(encoder, tmp_path / "encoder.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "encoder.joblib").predict(X), encoder.predict(X))
    pipeline = make_pipeline(StandardScaler(), KernelRidgeCV(kernel="rbf"))
    pipeline.fit(X, Y, kernelridgecv__groups=np.arange(60) // 6)
    assert pipeline.predict(X).shape == Y.shape


def test_inputs_stay_untouched_and_may_be_read_only():
    X, Y = simulate()
    K = X @ X.T
    X_before, K_before = X.copy(), K.copy()
    for array in (X, Y, K):
        array.setflags(write=False)
    KernelRidgeCV(kernel="rbf").fit(X, Y).predict(X)
    KernelRidgeCV(kernel="precomputed").fit(K, Y).predict(K)
    np.testing.assert_array_equal(X, X_before)
    np.testing.assert_array_equal(K, K_before)


def test_weights_on_disk_or_nowhere(tmp_path):
    X, Y = simulate()
    kept = KernelRidgeCV(kernel="rbf").fit(X, Y)
    stored = KernelRidgeCV(kernel="rbf", weights=tmp_path / "weights.npy").fit(X, Y)
    np.testing.assert_array_equal(np.load(tmp_path / "weights.npy"), kept.weights_)
    np.testing.assert_array_equal(stored.predict(X), kept.predict(X))
    scored = KernelRidgeCV(kernel="rbf", weights="none").fit(X, Y)
    np.testing.assert_array_equal(scored.cv_score_, kept.cv_score_)
    with pytest.raises(ValueError, match="this KernelRidgeCV kept no weights"):
        _ = scored.dual_coef_


# Folds and designs


@pytest.mark.parametrize("kernel", ["rbf", "precomputed"])
def test_groups_stay_whole(kernel):
    X, Y = simulate()
    given = rbf_kernel(X) if kernel == "precomputed" else X
    groups = np.random.default_rng(0).integers(0, 7, 60)
    encoder = KernelRidgeCV(kernel=kernel, keep_scores=True, cv=3)
    by_int = clone(encoder).fit(given, Y, groups=groups)
    by_splitter = clone(encoder).set_params(cv=GroupKFold(3)).fit(given, Y, groups=groups)
    np.testing.assert_array_equal(by_int.cv_scores_, by_splitter.cv_scores_)
    assert not np.allclose(by_int.cv_scores_, clone(encoder).fit(given, Y).cv_scores_)


@pytest.mark.parametrize("v", [1, 40])
@pytest.mark.parametrize(
    "cv",
    [
        KFold(4, shuffle=True, random_state=0),
        KFold(20, shuffle=True, random_state=0),
        RepeatedKFold(n_splits=3, n_repeats=2, random_state=0),
        ShuffleSplit(6, test_size=0.2, random_state=0),
    ],
    ids=["shuffled", "many", "repeated", "overlapping"],
)
def test_rows_keep_their_order_whatever_the_folds(cv, v):
    X, Y = simulate(p=80, v=v)
    how = {"alphas": [1.0, 10.0], "cv": cv, "score": "r2", "keep_scores": True}
    encoder, ridge = KernelRidgeCV(**how).fit(X, Y), RidgeCV(**how).fit(X, Y)
    np.testing.assert_allclose(encoder.cv_scores_, ridge.cv_scores_, atol=1e-10)
    plain = Ridge(ridge.alpha_).fit(X, Y)
    np.testing.assert_allclose(encoder.predict(X[::3]), plain.predict(X[::3]), rtol=1e-9)
    np.testing.assert_allclose(X.T @ encoder.dual_coef_, plain.coef_, atol=1e-10)


def test_a_design_is_reused():
    X, Y = simulate()
    encoder = KernelRidgeCV(kernel="rbf", gamma=0.1)
    design = encoder.design(X)
    fitted, direct = clone(encoder).fit(design, Y[:, 2:]), clone(encoder).fit(X, Y[:, 2:])
    np.testing.assert_array_equal(fitted.predict(X), direct.predict(X))
    assert fitted.n_features_in_ == 8
    for other, message in [
        (KernelRidgeCV(kernel="poly"), "kernel='poly', and the design was made with 'rbf'"),
        (KernelRidgeCV(kernel="rbf"), "gamma=0.125, and the design was made with 0.1"),
        (KernelRidgeCV(kernel="rbf", gamma=0.1, fit_intercept=False), "fit_intercept=False, and the design"),
        (RidgeCV(), "the design holds a kernel and no features"),
        (Ridge(), "the design holds a kernel and no features"),
    ]:
        with pytest.raises(ValueError, match=message):
            other.fit(design, Y)
    with pytest.raises(ValueError, match="the design holds features and no kernel"):
        encoder.fit(RidgeCV().design(X), Y)


def test_nested_score_is_that_of_alphas_chosen_without_the_fold():
    """Three folds: the score of each at the alpha that the two others choose, trained without it."""
    X, Y = simulate(n=45, noise=3.0)
    alphas = np.logspace(-2, 2, 5)
    folds = list(KFold(3).split(X))
    encoder = KernelRidgeCV(alphas, "rbf", cv=3, score="r2", nested=True).fit(X, Y)
    expected = np.zeros(5)
    for train, test in folds:
        others = [(np.setdiff1d(train, held), held) for t, held in folds if held is not test]
        inner = KernelRidgeCV(alphas, "rbf", cv=others, score="r2", weights="none").fit(X, Y)
        for u in range(5):
            one = KernelRidgeCV([inner.alpha_[u]], "rbf", cv=[(train, test)], score="r2").fit(X, Y[:, [u]])
            expected[u] += one.cv_score_[0] / 3
    np.testing.assert_allclose(encoder.nested_score_, expected, atol=1e-9)


# Kernels


@pytest.mark.parametrize("memory", [1, 2**30])
def test_kernels_follow_the_formulas_of_scikit_learn(memory):
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((20, 200)), rng.standard_normal((30, 200))
    poly, rbf = Kernel("poly", 0.01, 3, 1.5, None), Kernel("rbf", 0.01, 3, 1.0, A.mean(0))
    np.testing.assert_allclose(poly(A, B, HERE, memory), polynomial_kernel(A, B, 3, 0.01, 1.5), rtol=1e-11)
    np.testing.assert_allclose(rbf(A, B, HERE, memory), rbf_kernel(A, B, 0.01), rtol=1e-11)
    for kernel in (poly, rbf):
        both = kernel(A, None, HERE, memory)
        torch.testing.assert_close(both, kernel(A, A, HERE, memory), rtol=1e-11, atol=1e-13)
        assert torch.equal(both, both.T)
    assert (rbf(A, None, HERE, memory).diagonal() == 1).all()


def test_gamma_defaults_to_one_over_the_features():
    X, Y = simulate()
    by_default = KernelRidgeCV(kernel="rbf").fit(X, Y)
    np.testing.assert_array_equal(by_default.predict(X), KernelRidgeCV(kernel="rbf", gamma=1 / 8).fit(X, Y).predict(X))


def test_a_kernel_given_is_as_good_as_one_computed():
    X, Y = simulate()
    new = np.random.default_rng(1).standard_normal((9, 8))
    computed = KernelRidgeCV(kernel="rbf", gamma=0.1, keep_scores=True).fit(X, Y)
    given = KernelRidgeCV(kernel="precomputed", keep_scores=True).fit(rbf_kernel(X, None, 0.1), Y)
    np.testing.assert_allclose(given.cv_scores_, computed.cv_scores_, atol=1e-10)
    np.testing.assert_allclose(given.predict(rbf_kernel(new, X, 0.1)), computed.predict(new), rtol=1e-9)


def test_scikit_learn_cuts_a_given_kernel_along_both_axes():
    X, Y = simulate()
    K = rbf_kernel(X)
    predicted = cross_val_predict(KernelRidgeCV([1.0], "precomputed"), K, Y, cv=KFold(4))
    for train, test in KFold(4).split(X):
        encoder = KernelRidgeCV([1.0], "precomputed").fit(K[np.ix_(train, train)], Y[train])
        np.testing.assert_array_equal(predicted[test], encoder.predict(K[np.ix_(test, train)]))
    search = GridSearchCV(KernelRidgeCV(kernel="precomputed"), {"score": ["r", "r2"]}, cv=2).fit(K, Y)
    assert search.predict(K).shape == Y.shape


def test_a_smooth_function_is_learned_better_than_by_a_line():
    """Recovery: an RBF kernel predicts new rows of a smooth function at four fifths of what noise leaves or more."""
    rng = np.random.default_rng(0)
    X, new = rng.uniform(-2, 2, (300, 2)), rng.uniform(-2, 2, (200, 2))
    truth = [np.sin(2 * F[:, :1]) * np.cos(F[:, 1:]) for F in (X, new)]
    Y = truth[0] + 0.2 * rng.standard_normal((300, 1))
    assert KernelRidgeCV(kernel="rbf", gamma=1.0).fit(X, Y).score(new, truth[1]) > 0.95
    assert RidgeCV().fit(X, Y).score(new, truth[1]) < 0.4


# Digits


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(300, 40), (100, 400)])
@pytest.mark.parametrize("offset", [0.0, 10.0, 100.0, 1e4])
def test_large_offsets_cost_no_accuracy(shape, offset, dtype):
    """The linear kernel of features far from zero, in standard deviations, and their primal fit in float64."""
    rng = np.random.default_rng(0)
    X = (rng.standard_normal(shape).astype(np.float32) + np.float32(offset)).astype(dtype)
    Y = ((X - offset) @ rng.standard_normal((shape[1], 4)) + rng.standard_normal((shape[0], 4))).astype(dtype)
    encoder = KernelRidgeCV([1.0, 10.0, 100.0], keep_scores=True).fit(X, Y)
    primal = RidgeCV([1.0, 10.0, 100.0], keep_scores=True).fit(X.astype(np.float64), Y.astype(np.float64))
    tolerance = 1e-5 if dtype == np.float32 else 1e-9
    np.testing.assert_array_equal(encoder.alpha_, primal.alpha_)
    np.testing.assert_allclose(encoder.cv_scores_, primal.cv_scores_, atol=tolerance)
    expected = primal.predict(X.astype(np.float64))
    assert (np.abs(encoder.predict(X) - expected) < tolerance * expected.std(0)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [10.0, 1e4])
def test_rbf_does_not_move_with_the_origin(offset, dtype):
    X, Y = simulate(dtype=dtype)
    X = (X + dtype(offset)).astype(dtype)
    near = (X.astype(np.float64) - offset).astype(np.float64)  # the rounding of float32 is part of the features
    there = KernelRidgeCV(kernel="rbf", keep_scores=True).fit(X, Y)
    here = KernelRidgeCV(kernel="rbf", keep_scores=True).fit(near, Y.astype(np.float64))
    tolerance = 1e-5 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(there.cv_scores_, here.cv_scores_, atol=tolerance)
    np.testing.assert_allclose(there.predict(X), here.predict(near), rtol=tolerance)


def test_one_row_far_away_costs_the_others_no_digits():
    X, Y = simulate()
    far = np.vstack([X, np.full((1, 8), 1e9)])
    folds = list(KFold(4).split(X))
    plain = KernelRidgeCV(kernel="rbf", cv=folds, keep_scores=True).fit(X, Y)
    more = KernelRidgeCV(kernel="rbf", cv=folds, keep_scores=True).fit(far, np.vstack([Y, Y[:1]]))
    np.testing.assert_allclose(more.cv_scores_, plain.cv_scores_, atol=1e-9)


# Matrices that are no kernel


def indefinite(n, seed=0):
    """A kernel with eigenvalues far below zero."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (Q * np.linspace(-4, 10, n)) @ Q.T


def clipped_predictions(K_train, K_new, Y, alpha, intercept):
    """Kernel ridge on the part of the centred kernel that has positive eigenvalues."""
    y_mean = Y.mean(0) if intercept else 0.0
    if intercept:
        n = len(K_train)
        H = np.eye(n) - 1 / n
        K_new = (K_new - K_train.mean(0)) @ H
        K_train = H @ K_train @ H
    values, vectors = np.linalg.eigh(K_train)
    V, positive = vectors[:, values > 1e-9], values[values > 1e-9]
    return y_mean + K_new @ V @ ((V.T @ (Y - y_mean)) / (positive + alpha)[:, None])


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("v", [1, 4, 70])
@pytest.mark.parametrize("cv", [3, 20])
def test_negative_eigenvalues_count_as_zero_everywhere(cv, v, intercept):
    """Also where many folds and few units would take all folds from one decomposition; each alpha alone or with all."""
    n = 60
    K, Y = indefinite(n), np.random.default_rng(1).standard_normal((n, v))
    alphas = np.logspace(-1, 2, 6)
    scores = np.zeros((6, v))
    for train, test in KFold(cv).split(K):
        for a, alpha in enumerate(alphas):
            predicted = clipped_predictions(K[np.ix_(train, train)], K[np.ix_(test, train)], Y[train], alpha, intercept)
            scores[a] += 1 - ((Y[test] - predicted) ** 2).sum(0) / ((Y[test] - Y[test].mean(0)) ** 2).sum(0)
    scores /= cv
    how = {"kernel": "precomputed", "cv": cv, "score": "r2", "fit_intercept": intercept, "keep_scores": True}
    encoder = KernelRidgeCV(alphas, **how)
    encoder.fit(K, Y)
    np.testing.assert_allclose(encoder.cv_scores_, scores, rtol=1e-8, atol=1e-9)
    blocks = KernelRidgeCV(alphas, **how, max_memory=1).fit(K, Y)
    np.testing.assert_allclose(blocks.cv_scores_, scores, rtol=1e-8, atol=1e-9)
    one_by_one = [KernelRidgeCV([alpha], **how).fit(K, Y) for alpha in alphas]
    np.testing.assert_allclose(np.vstack([one.cv_scores_ for one in one_by_one]), scores, rtol=1e-8, atol=1e-9)
    new = np.random.default_rng(2).standard_normal((5, n))
    for alpha, one in zip(alphas, one_by_one, strict=True):
        np.testing.assert_allclose(one.predict(new), clipped_predictions(K, new, Y, alpha, intercept), rtol=1e-8)


@pytest.mark.parametrize("intercept", [True, False])
def test_one_decomposition_is_refused_for_negative_eigenvalues_alone(intercept):
    """The plan that takes all folds from one spectrum is chosen here, and kept for what is a kernel."""
    n, alphas = 60, np.logspace(-1, 2, 6)
    encoder = KernelRidgeCV(alphas, "precomputed", cv=20, fit_intercept=intercept)
    F = np.random.default_rng(0).standard_normal((n, 20))  # of low rank: eigenvalues that rounding puts below zero
    for K, kept in ((F @ F.T, True), (F @ F.T + np.eye(n), True), (indefinite(n), False)):
        design = encoder.design(K)
        assert make_plan(design, alphas, 1).method == "held-out"
        assert design.has_negative_eigenvalues() is not kept
        assert (encoder._plan(design, alphas, 1).method == "held-out") is kept


# Units that cannot be fitted or scored


def test_units_with_nan_are_left_out_and_counted_once():
    X, Y = simulate()
    holed = Y.copy()
    holed[3, 1] = holed[:, 4] = np.nan
    with pytest.warns(UserWarning, match="2 of 5 units hold NaN") as caught:
        encoder = KernelRidgeCV(kernel="rbf", keep_scores=True).fit(X, holed)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    whole = KernelRidgeCV(kernel="rbf", keep_scores=True).fit(X, Y)
    for name in ("alpha_", "cv_score_", "cv_scores_", "dual_coef_", "response_mean_"):
        values = getattr(encoder, name)
        assert np.isnan(values[..., [1, 4]]).all()
        np.testing.assert_allclose(values[..., [0, 2, 3]], getattr(whole, name)[..., [0, 2, 3]], rtol=1e-9)
    predicted = encoder.predict(X)
    assert np.isnan(predicted[:, [1, 4]]).all()
    np.testing.assert_allclose(predicted[:, [0, 2, 3]], whole.predict(X)[:, [0, 2, 3]])


def test_constant_units_are_predicted_as_their_constant():
    X, Y = simulate()
    Y[:, 2] = 0.1
    with pytest.warns(UserWarning, match="1 of 5 units have no cross-validated score") as caught:
        encoder = KernelRidgeCV([1.0], "rbf").fit(X, Y)
    assert len(caught) == 1
    np.testing.assert_array_equal(encoder.predict(X)[:, 2], np.full(60, 0.1))
    assert np.isnan(encoder.cv_score_[2]) and encoder.alpha_[2] == encoder.alphas_[-1]


def test_kernel_without_information():
    _, Y = simulate()
    with pytest.warns(UserWarning, match="5 of 5 units have no cross-validated score"):
        encoder = KernelRidgeCV(kernel="precomputed").fit(np.ones((60, 60)), Y)
    np.testing.assert_allclose(encoder.predict(np.ones((2, 60))), np.tile(Y.mean(0), (2, 1)))
    np.testing.assert_array_equal(encoder.dual_coef_, np.zeros((60, 5)))


# Bad input


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"kernel": "rbff"}, "kernel='rbff' is unknown; did you mean 'rbf"),
        ({"kernel": ["rbf"]}, "kernel=.* is unknown"),
        ({"gamma": 0.0}, "gamma=0.0: expected a number above zero"),
        ({"gamma": "scale"}, "gamma='scale'"),
        ({"degree": 0}, "degree=0: expected a whole number"),
        ({"degree": 2.5}, "degree=2.5"),
        ({"coef0": np.nan}, "coef0=nan"),
        ({"alphas": [0.0]}, "alphas holds 0"),
        ({"score": "r3"}, "score='r3' is unknown"),
        ({"cv": LeaveOneOut()}, "test folds of one row"),
        ({"max_memory": 0}, "max_memory=0"),
        ({"weights": "disk"}, "weights='disk'"),
        ({"kernel": "poly", "gamma": 1e300}, r"leaves the range of numbers at gamma=1e\+300"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    X, Y = simulate()
    with pytest.raises(ValueError, match=message):
        KernelRidgeCV(**parameters).fit(X, Y)


def test_data_out_of_range():
    X, Y = simulate()
    K = X @ X.T
    encoder = KernelRidgeCV(kernel="precomputed")
    with pytest.raises(ValueError, match=r"X has shape \(60, 8\).*expected a square kernel"):
        encoder.fit(X, Y)
    lopsided = K.copy()
    lopsided[3, 7] += 1.0
    with pytest.raises(ValueError, match=r"not symmetric: K\[3, 7\] is .* and K\[7, 3\] is"):
        encoder.fit(lopsided, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = encoder.fit((X @ X.T + 1e-8 * np.arange(60)).astype(np.float32), Y)  # rounding alone is no asymmetry
    with pytest.raises(ValueError, match="60 features"):
        single.predict(K[:, :59])
    with pytest.raises(ValueError, match="X has 60 rows and Y has 59"):
        encoder.fit(K, Y[:-1])
    with pytest.raises(ValueError, match="every unit of Y"):
        encoder.fit(K, np.full_like(Y, np.nan))
    with pytest.raises(ValueError, match="flatten the tokens"):
        KernelRidgeCV().fit(X.reshape(60, 2, 4), Y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("kernel", ["linear", "poly", "rbf"])
def test_cuda_device_gives_the_same(kernel):
    X, Y = simulate()
    here, there = (KernelRidgeCV(kernel=kernel, keep_scores=True, device=d).fit(X, Y) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(there.cv_scores_, here.cv_scores_, atol=1e-9)
    np.testing.assert_allclose(there.predict(X), here.predict(X), atol=1e-9)


def test_nested_needs_folds_to_choose_with():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((30, 4)), rng.standard_normal((30, 2))
    for parameters, message in (({"cv": 2}, "with 2 folds"), ({"per_unit": False}, "with per_unit=False")):
        with pytest.raises(ValueError, match=f"nested=True {message}"):
            KernelRidgeCV([1.0], nested=True, **parameters).fit(X, Y)
