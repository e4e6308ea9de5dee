import pickle
import warnings

import h5py
import joblib
import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, LeaveOneGroupOut, LeaveOneOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders.linear.design import SpectralDesign
from neuralign.encoders.linear.folds import fold_rows
from neuralign.encoders.linear.moments import choose
from neuralign.encoders.linear.responses import Responses
from neuralign.encoders.linear.ridge import RidgeCV
from neuralign.encoders.linear.stream import BlockFitter, mean_over_units

# Grids are kept short here; the warning has a test of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.*of the chosen alphas lie at an end of the grid")


@pytest.mark.filterwarnings("ignore:.* folds have fewer than 3 test rows", "ignore:.*test folds of two rows at most")
@parametrize_with_checks(
    [RidgeCV(), RidgeCV(per_unit=False, standardise=True, score="r2"), RidgeCV(fit_intercept=False)]
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def simulate(n=60, p=8, v=5, noise=1.0, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    Y = X @ rng.standard_normal((p, v)) + noise * rng.standard_normal((n, v)) + 3.0
    return X.astype(dtype), Y.astype(dtype)


# What comes out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shapes_and_dtypes(dtype):
    X, Y = simulate(dtype=dtype)
    encoder = RidgeCV(keep_scores=True, alphas=[10.0, 0.1, 1.0]).fit(X, Y)
    assert encoder.coef_.shape == (8, 5)
    assert encoder.coef_.dtype == encoder.predict(X).dtype == encoder.intercept_.dtype == dtype
    assert encoder.alpha_.shape == encoder.cv_score_.shape == encoder.intercept_.shape == (5,)
    assert encoder.cv_scores_.shape == (3, 5)
    assert encoder.n_features_in_ == 8
    np.testing.assert_array_equal(encoder.alphas_, [0.1, 1.0, 10.0])
    assert np.isin(encoder.alpha_, encoder.alphas_).all()  # grid values bit for bit
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(encoder.predict(X), X @ encoder.coef_ + encoder.intercept_, atol=tolerance)


def test_integers_become_float64():
    X, Y = simulate()
    encoder = RidgeCV().fit((10 * X).astype(int), (10 * Y).astype(int))
    assert encoder.coef_.dtype == np.float64


def test_vector_is_one_unit_without_axis():
    X, Y = simulate()
    whole, single = RidgeCV().fit(X, Y[:, :1]), RidgeCV().fit(X, Y[:, 0])
    assert np.ndim(single.alpha_) == np.ndim(single.intercept_) == np.ndim(single.cv_score_) == 0
    assert single.coef_.shape == (8,)
    assert single.predict(X).shape == (60,)
    assert whole.predict(X).shape == (60, 1)
    np.testing.assert_array_equal(single.predict(X), whole.predict(X)[:, 0])


def test_inputs_stay_untouched_and_may_be_read_only_or_strided():
    X, Y = simulate()
    expected = RidgeCV().fit(X, Y).coef_
    X_before, Y_before = X.copy(), Y.copy()
    X.setflags(write=False)
    Y.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(RidgeCV().fit(X, Y).coef_, expected)
    np.testing.assert_array_equal(X, X_before)
    np.testing.assert_array_equal(Y, Y_before)
    flipped = RidgeCV().fit(np.asfortranarray(X)[:, ::-1], np.asfortranarray(Y)[:, ::-1])
    np.testing.assert_allclose(flipped.coef_, expected[::-1, ::-1], rtol=1e-9)


@pytest.mark.parametrize("shape", [(60, 8), (30, 80)])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_result_does_not_depend_on_blocks(shape, fit_intercept, monkeypatch):
    X, Y = simulate(*shape, v=23)
    whole = RidgeCV(fit_intercept=fit_intercept).fit(X, Y)
    widths = []
    fit = BlockFitter.fit

    def watched(self, values, part, index=None):
        widths.append(part.stop - part.start)
        return fit(self, values, part, index)

    monkeypatch.setattr(BlockFitter, "fit", watched)
    tiny = RidgeCV(fit_intercept=fit_intercept, max_memory=1).fit(X, Y)
    assert set(widths) == {1}
    np.testing.assert_array_equal(tiny.alpha_, whole.alpha_)
    np.testing.assert_allclose(tiny.coef_, whole.coef_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(tiny.predict(X), whole.predict(X), rtol=1e-9)
    widths.clear()
    RidgeCV(fit_intercept=fit_intercept, max_memory=20_000).fit(X, Y)
    assert 1 < max(widths) < 23


def test_same_input_gives_same_bits():
    X, Y = simulate(dtype=np.float32)
    np.testing.assert_array_equal(RidgeCV().fit(X, Y).coef_, RidgeCV().fit(X, Y).coef_)


def test_clone_pickle_joblib_pipeline(tmp_path):
    X, Y = simulate()
    encoder = RidgeCV(alphas=[1.0, 10.0], score="r2", cv=KFold(3)).fit(X, Y)
    assert clone(encoder).get_params()["score"] == "r2"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encoder)).predict(X), encoder.predict(X))
    joblib.dump(encoder, tmp_path / "encoder.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "encoder.joblib").predict(X), encoder.predict(X))
    pipeline = make_pipeline(StandardScaler(), RidgeCV()).fit(X, Y, ridgecv__groups=np.arange(60) // 6)
    assert pipeline.predict(X).shape == Y.shape


def test_score_is_both_parameter_and_method():
    X, Y = simulate()
    encoder = RidgeCV(score="r").set_params(score="r2").fit(X, Y)
    assert encoder.get_params()["score"] == "r2"
    assert "score='r2'" in repr(encoder)
    residual = ((Y - encoder.predict(X)) ** 2).sum(0)
    assert encoder.score(X, Y) == pytest.approx(np.mean(1 - residual / ((Y - Y.mean(0)) ** 2).sum(0)))
    search = GridSearchCV(RidgeCV(), {"score": ["r", "r2"], "standardise": [False, True]}, cv=2).fit(X, Y)
    assert set(search.best_params_) == {"score", "standardise"}
    with pytest.raises(ValueError, match=r"y has shape \(60, 4\)"):
        encoder.score(X, Y[:, :4])


# How alpha is chosen


def test_more_noise_takes_more_shrinkage():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((150, 60))
    signal = X @ rng.standard_normal((60, 40))
    Y = signal + np.repeat([1.0, 60.0], 20) * rng.standard_normal(signal.shape)
    encoder = RidgeCV(alphas=np.logspace(-2, 5, 15), score="r2").fit(X, Y)
    assert np.median(encoder.alpha_[20:]) > 100 * np.median(encoder.alpha_[:20])


def test_one_alpha_for_all_is_best_on_average():
    X, Y = simulate(n=40, p=30, v=12, noise=4.0)
    each, shared = (
        RidgeCV(keep_scores=True, score="r2").fit(X, Y),
        RidgeCV(keep_scores=True, score="r2", per_unit=False).fit(X, Y),
    )
    np.testing.assert_allclose(shared.cv_scores_, each.cv_scores_)
    best = each.cv_scores_.mean(axis=1).argmax()
    np.testing.assert_array_equal(shared.alpha_, np.full(12, each.alphas_[best]))
    np.testing.assert_array_equal(shared.cv_score_, shared.cv_scores_[best])
    assert len(np.unique(each.alpha_)) > 1


def test_choice_among_ties_and_undefined_scores():
    nan = np.nan
    scores = np.array([[0.5, 0.1, nan, nan, 0.3], [0.5, 0.3, nan, 0.2, 0.3 + 1e-9], [0.4, 0.2, nan, nan, 0.2]])
    np.testing.assert_array_equal(choose(scores, 1e-6), [1, 1, 2, 1, 1])
    assert choose(scores, 0.2)[0] == 2


def test_correlation_cannot_tell_alphas_apart_for_one_feature():
    X, Y = simulate(p=1, noise=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a flat end of the grid is no reason to widen it
        encoder = RidgeCV(alphas=np.logspace(-3, 3, 7)).fit(X, Y)
    np.testing.assert_array_equal(encoder.alpha_, np.full(5, 1e3))
    assert (RidgeCV(alphas=np.logspace(-3, 3, 7), score="r2").fit(X, Y).alpha_ < 1e3).all()


def test_one_warning_when_the_grid_ends_too_early():
    X, Y = simulate(n=40, p=30, v=30, noise=30.0)
    with pytest.warns(UserWarning, match=r"of the chosen alphas lie at an end of the grid \(0.01 to 0.1\)") as caught:
        RidgeCV(alphas=[0.01, 0.1], score="r").fit(X, Y)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RidgeCV(score="r").fit(X, Y)
        RidgeCV(alphas=[0.01]).fit(X, Y)


def test_shared_alpha_climbs_by_the_mean_over_units():
    """Half of the units climb by themselves, but the mean over units is best inside the grid."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((100, 60))
    signal = X @ rng.standard_normal((60, 20))
    Y = signal + np.repeat([0.0, 40.0], 10) * rng.standard_normal(signal.shape)
    grid = [1e-1, 1e1, 1e2, 1e3]
    with pytest.warns(UserWarning, match="lie at an end of the grid"):
        each = RidgeCV(alphas=grid, score="r2", keep_scores=True).fit(X, Y)
    assert each.edge_fraction_ > 0.4 and 0 < each.cv_scores_.mean(1).argmax() < 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = RidgeCV(alphas=grid, score="r2", per_unit=False).fit(X, Y)
    assert shared.edge_fraction_ == 0
    with pytest.warns(UserWarning, match="100% of the chosen alphas lie at an end of the grid"):
        assert RidgeCV(alphas=[1e2, 1e3], score="r2", per_unit=False).fit(X, signal).edge_fraction_ == 1


def test_mean_over_units_compares_the_same_units_at_every_alpha():
    nan = np.nan
    unscored_once = np.array([[0.1, 0.2, 0.9, nan], [0.3, 0.4, nan, nan], [0.2, 0.5, 0.9, nan]])
    np.testing.assert_allclose(mean_over_units(unscored_once)[:, 0], [0.15, 0.35, 0.35])
    nowhere = np.array([[nan, nan], [0.3, 0.4], [0.2, nan]])  # an alpha without any score is no reason to drop units
    np.testing.assert_allclose(mean_over_units(nowhere)[:, 0], [nan, 0.3, 0.2])
    none_everywhere = np.array([[0.1, nan], [nan, 0.4]])
    np.testing.assert_allclose(mean_over_units(none_everywhere)[:, 0], [0.1, 0.4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(mean_over_units(np.full((2, 3), nan))).all() and mean_over_units(np.empty((2, 0))).shape == (
            2,
            1,
        )


# Folds


def test_nested_needs_folds_to_choose_with():
    """Also of a design that was made for an alpha of each unit."""
    X, Y = simulate()
    encoder = RidgeCV(alphas=[1.0, 10.0], nested=True, cv=3)
    design = encoder.design(X)
    assert np.isfinite(encoder.fit(design, Y).nested_score_).all()
    with pytest.raises(ValueError, match="nested=True with per_unit=False"):
        encoder.set_params(per_unit=False).fit(design, Y)
    with pytest.raises(ValueError, match="nested=True with 2 folds"):
        RidgeCV(nested=True, cv=2).design(X)


def test_int_with_groups_keeps_groups_whole():
    X, Y = simulate()
    groups = np.random.default_rng(0).integers(0, 7, 60)
    for train, test in fold_rows(3, X, Y, groups):
        assert not set(groups[train]) & set(groups[test])
    by_int = RidgeCV(keep_scores=True, cv=3).fit(X, Y, groups=groups)
    by_splitter = RidgeCV(keep_scores=True, cv=GroupKFold(3)).fit(X, Y, groups=groups)
    by_pairs = RidgeCV(keep_scores=True, cv=list(GroupKFold(3).split(X, groups=groups))).fit(X, Y)
    np.testing.assert_array_equal(by_int.cv_scores_, by_splitter.cv_scores_)
    np.testing.assert_array_equal(by_int.cv_scores_, by_pairs.cv_scores_)
    assert not np.allclose(by_int.cv_scores_, RidgeCV(keep_scores=True, cv=3).fit(X, Y).cv_scores_)
    RidgeCV(keep_scores=True, cv=LeaveOneGroupOut()).fit(X, Y, groups=groups.astype(str))


def test_folds_given_as_masks_or_generator():
    X, Y = simulate()
    test = np.arange(60) % 2 == 0
    by_mask = RidgeCV(keep_scores=True, cv=[(~test, test)]).fit(X, Y)
    once = (pair for pair in [((~test).nonzero()[0].tolist(), test.nonzero()[0].tolist())])
    by_number = RidgeCV(keep_scores=True, cv=once).fit(X, Y)
    np.testing.assert_array_equal(by_mask.cv_scores_, by_number.cv_scores_)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("shape", [(40, 6), (40, 90)])
def test_training_side_of_a_fold_ignores_test_rows(shape, standardise, dtype):
    """Scaling, centring and axes keep their digits when test rows take absurd values."""
    X, _ = simulate(*shape)
    other = X.copy()
    other[30:] = 1e6 * other[30:] + 1e7
    folds = [(np.arange(30), np.arange(30, 40))]
    a, b = (
        SpectralDesign(x.astype(dtype), folds, standardise=standardise).trains(0, by_rows=True)[0] for x in (X, other)
    )
    tolerance = 1e-5 if dtype == np.float32 else 1e-9
    assert a.top == pytest.approx(b.top, rel=tolerance)
    torch.testing.assert_close(a.eigenvalues, b.eigenvalues, rtol=tolerance, atol=tolerance)
    # Axes of close eigenvalues may turn; what rows have in common along all of them may not.
    kernels = [one.coordinates.T @ one.coordinates for one in (a, b)]
    torch.testing.assert_close(*kernels, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("score", ["r", "r2"])
@pytest.mark.parametrize("shape", [(60, 4), (60, 90)])
def test_rows_outside_a_fold_cannot_reach_its_scores(score, shape):
    """On pure noise, rows with outliers are appended to X and Y: scaling with them would move the scores."""
    rng = np.random.default_rng(1)
    n, p = shape
    X, Y = rng.standard_normal((n, p)), rng.standard_normal((n, 6))
    folds = [(np.arange(40), np.arange(40, n))]
    X_more = np.vstack([X, 1e4 * rng.standard_normal((3, p)) * np.arange(1, p + 1)])
    Y_more = np.vstack([Y, rng.standard_normal((3, 6))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ends of the grid: this is noise
        encoder = RidgeCV(keep_scores=True, cv=folds, standardise=True, score=score, alphas=np.logspace(-1, 2, 4))
        clean = clone(encoder).fit(X, Y).cv_scores_
        np.testing.assert_allclose(clone(encoder).fit(X_more, Y_more).cv_scores_, clean, rtol=1e-9, atol=1e-12)
        # The same comparison catches a leak: here all rows, the outliers too, set offset and scale.
        leaky = (X_more - X_more.mean(0)) / X_more.std(0)
        leaked = clone(encoder).set_params(standardise=False).fit(leaky, Y_more).cv_scores_
    assert np.abs(leaked - clean).max() > 0.01


def test_test_rows_cannot_reach_the_scaling_of_their_fold():
    """An outlier among the test rows moves what is predicted for itself and for no other row."""
    rng = np.random.default_rng(2)
    X = rng.standard_normal((51, 4))
    X[50] = 1e4
    folds = [(np.arange(40), np.arange(40, 50)), (np.arange(40), np.arange(40, 51))]
    clean, with_outlier = (
        SpectralDesign(X, [fold], standardise=True).trains(0, by_rows=False)[0].tests[0] for fold in folds
    )
    torch.testing.assert_close(
        (with_outlier.coordinates + with_outlier.mean)[:10], clean.coordinates + clean.mean, rtol=1e-9, atol=1e-9
    )


# Numbers that float32 and peers find hard


@pytest.mark.parametrize("shape", [(300, 40), (100, 400)])
@pytest.mark.parametrize("offset", [10.0, 100.0, 1e4])
def test_large_offsets_cost_no_accuracy(shape, offset):
    """Features far from zero, in standard deviations: the same weights as in float64."""
    X, Y = simulate(*shape, v=4, dtype=np.float32)
    X = X + np.float32(offset)
    single = RidgeCV(keep_scores=True, alphas=[1.0, 10.0, 100.0]).fit(X, Y)
    double = RidgeCV(keep_scores=True, alphas=[1.0, 10.0, 100.0]).fit(X.astype(np.float64), Y)
    np.testing.assert_array_equal(single.alpha_, double.alpha_)
    spread = double.predict(X).std(axis=0)
    assert (np.abs(single.predict(X) - double.predict(X)) < 1e-5 * spread).all()
    np.testing.assert_allclose(single.cv_scores_, double.cv_scores_, atol=1e-5)


def test_double_precision_weights_do_not_move_with_the_origin():
    X, Y = simulate(100, 400, v=4)
    here, there = RidgeCV(alphas=[1.0, 10.0]).fit(X, Y), RidgeCV(alphas=[1.0, 10.0]).fit(X + 1e3, Y)
    np.testing.assert_allclose(there.coef_, here.coef_, atol=1e-9)
    np.testing.assert_allclose(there.predict(X + 1e3), here.predict(X), atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale_x, scale_y", [(1.0, 1e-13), (1e-6, 1.0), (1e6, 1e9), (1.0, 1e-30)])
def test_units_of_measurement_do_not_matter(dtype, scale_x, scale_y):
    X, Y = simulate(noise=5.0, dtype=dtype)
    alphas = np.logspace(-2, 8, 11)
    plain = RidgeCV(keep_scores=True, alphas=alphas).fit(X, Y)
    scaled = RidgeCV(keep_scores=True, alphas=alphas * scale_x**2).fit(X * dtype(scale_x), Y * dtype(scale_y))
    tolerance = 1e-5 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(scaled.cv_scores_, plain.cv_scores_, atol=tolerance)
    np.testing.assert_allclose(scaled.coef_ * dtype(scale_x) / dtype(scale_y), plain.coef_, rtol=0.01, atol=1e-4)


def test_responses_far_from_zero():
    X, Y = simulate(dtype=np.float32)
    plain = RidgeCV().fit(X, Y)
    far = RidgeCV().fit(X, Y.astype(np.float64) + 1e6)
    np.testing.assert_allclose(far.cv_score_, plain.cv_score_, atol=1e-5)
    np.testing.assert_allclose(far.coef_, plain.coef_, atol=1e-4)


def test_duplicated_columns_share_their_weight():
    X, Y = simulate()
    once, twice = RidgeCV(alphas=[2.0]).fit(X, Y), RidgeCV(alphas=[4.0]).fit(np.hstack([X, X]), Y)
    np.testing.assert_allclose(twice.coef_[:8], once.coef_ / 2, rtol=1e-9)
    np.testing.assert_allclose(twice.coef_[8:], once.coef_ / 2, rtol=1e-9)
    np.testing.assert_allclose(twice.cv_score_, once.cv_score_, rtol=1e-9)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("p", [7, 70])
def test_constant_column_changes_nothing(standardise, p):
    X, Y = simulate(p=p)
    with_constant = np.hstack([X, np.full((60, 1), 0.1)])  # 0.1 is not a sum of few powers of two
    plain, more = (
        RidgeCV(keep_scores=True, standardise=standardise).fit(X, Y),
        RidgeCV(keep_scores=True, standardise=standardise).fit(with_constant, Y),
    )
    np.testing.assert_allclose(more.coef_[:-1], plain.coef_, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(more.coef_[-1], np.zeros(5))
    np.testing.assert_allclose(more.cv_scores_, plain.cv_scores_, rtol=1e-9)


def test_one_hot_features_predict_shrunken_category_means():
    """Closed form for balanced categories: the mean of each, shrunk to the grand mean by m / (m + alpha)."""
    rng = np.random.default_rng(0)
    categories = np.tile(np.arange(10), 12)
    X = np.eye(10, dtype=np.float32)[categories]
    Y = rng.standard_normal((10, 4))[categories] + 0.5 * rng.standard_normal((120, 4))
    encoder = RidgeCV(alphas=[3.0], cv=KFold(4)).fit(X, Y)
    means = np.stack([Y[categories == k].mean(0) for k in range(10)])
    expected = Y.mean(0) + (means - Y.mean(0)) * 12 / (12 + 3.0)
    np.testing.assert_allclose(encoder.predict(np.eye(10)), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fold_of_one_category_has_no_correlation(dtype):
    """Each test fold holds one category: predictions are constant there, which rounding must not hide."""
    rng = np.random.default_rng(0)
    categories = np.repeat(np.arange(6), 10)
    X = (np.eye(6)[categories] + rng.standard_normal(6) / 3).astype(dtype)
    Y = rng.standard_normal((60, 3))
    with pytest.warns(UserWarning, match="3 of 3 units have no cross-validated score"):
        encoder = RidgeCV(keep_scores=True, cv=LeaveOneGroupOut()).fit(X, Y, groups=categories)
    assert np.isnan(encoder.cv_scores_).all()
    np.testing.assert_array_equal(encoder.alpha_, np.full(3, 1e8))
    assert np.isfinite(encoder.predict(X)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("copies", [1, 4])
def test_fold_of_categories_never_trained_on_has_no_correlation(dtype, copies):
    """Test rows are orthogonal to all training rows; 16 features are primal, four copies of them dual."""
    categories = np.tile(np.repeat(np.arange(9), 2), 4)
    X = np.tile(0.3 * hadamard(16)[categories], copies).astype(dtype)
    Y = np.random.default_rng(0).standard_normal((72, 3))
    with pytest.warns(UserWarning, match="3 of 3 units have no cross-validated score"):
        encoder = RidgeCV(keep_scores=True, cv=LeaveOneGroupOut()).fit(X, Y, groups=categories // 3)
    assert np.isnan(encoder.cv_scores_).all()
    assert np.isfinite(encoder.predict(X)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [8, 80])
def test_correlation_survives_predictions_too_small_to_square(dtype, p):
    X, Y = simulate(p=p, dtype=dtype)
    huge = RidgeCV(keep_scores=True, alphas=[1e12, 1e30, 1e60]).fit(X, Y)
    np.testing.assert_allclose(huge.cv_scores_[1:], huge.cv_scores_[[0, 0]], atol=1e-5)


def test_no_information_in_the_features():
    _, Y = simulate()
    with pytest.warns(UserWarning, match="5 of 5 units have no cross-validated score"):
        encoder = RidgeCV(standardise=True).fit(np.full((60, 3), 0.1), Y)
    np.testing.assert_array_equal(encoder.coef_, np.zeros((3, 5)))
    np.testing.assert_allclose(encoder.predict(np.zeros((2, 3))), np.tile(Y.mean(0), (2, 1)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("smallest", [1e-6, 1e-14, 1e-18])
def test_penalties_far_below_the_spectrum_are_not_left_to_one_decomposition(smallest, dtype):
    """Fewer training rows than features, and fewer features than rows: all rows leave axes free that a fold uses."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 85)).astype(dtype)
    Y = (X[:, :3] @ rng.standard_normal((3, 2)) + rng.standard_normal((100, 2))).astype(dtype)
    alphas = np.array([smallest, 1.0, 100.0])
    surface = RidgeCV(alphas, keep_scores=True).fit(X, Y).cv_scores_
    for k, alpha in enumerate(alphas):
        scores = []
        for train, test in KFold(5).split(X):
            F = (X[train] - X[train].mean(0, dtype=np.float64)).astype(np.float64)
            U, s, V = np.linalg.svd(F, full_matrices=False)
            keep = s > 1e-10 * s[0]
            y = Y[train] - Y[train].mean(0, dtype=np.float64)
            b = V[keep].T @ ((s[keep] / (s[keep] ** 2 + alpha))[:, None] * (U[:, keep].T @ y))
            p = (X[test] - X[train].mean(0, dtype=np.float64)) @ b
            scores.append([np.corrcoef(p[:, u], Y[test, u])[0, 1] for u in range(2)])
        np.testing.assert_allclose(surface[k], np.mean(scores, 0), atol=1e-5 if dtype == np.float32 else 1e-8)


@pytest.mark.parametrize("offset", [1e4, 1e6])
@pytest.mark.parametrize("standardise", [False, True])
def test_sessions_far_from_each_other(standardise, offset):
    """One session trains and the other tests; the offset between the two may not cost digits of either."""
    rng = np.random.default_rng(0)
    X, Y = simulate(200, 6, v=3, noise=2.0)
    there = X.copy()
    there[100:] += offset * rng.standard_normal(6)
    folds = [(np.arange(100), np.arange(100, 150)), (np.arange(100, 200), np.arange(50))]
    how = {"cv": folds, "alphas": [0.1, 10.0, 1000.0], "standardise": standardise, "keep_scores": True}
    for x, tolerance in ((there, 1e-8), (there.astype(np.float32), 5e-4)):
        known = x.astype(np.float64)
        surface = RidgeCV(**how).fit(x, Y.astype(x.dtype)).cv_scores_
        for k, alpha in enumerate(how["alphas"]):
            scores = []
            for train, test in folds:
                mean, scale = known[train].mean(0), known[train].std(0) if standardise else 1.0
                F = (known[train] - mean) / scale
                b = np.linalg.solve(F.T @ F + alpha * np.eye(6), F.T @ (Y[train] - Y[train].mean(0)))
                p = (known[test] - mean) / scale @ b
                scores.append([np.corrcoef(p[:, u], Y[test, u])[0, 1] for u in range(3)])
            np.testing.assert_allclose(surface[k], np.mean(scores, 0), atol=tolerance)


def test_axes_of_wide_features_keep_the_digits_of_small_penalties():
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((100, 300)) * np.logspace(0, -3, 300)).astype(np.float32)
    y = rng.standard_normal((100, 1)).astype(np.float32)
    encoder = RidgeCV([1e-6, 1e-5]).fit(X, y)
    F = X - X.mean(0, dtype=np.float64)
    dual = np.linalg.solve(F @ F.T + encoder.alpha_[0] * np.eye(100), y - y.mean(dtype=np.float64))
    expected = F @ (F.T @ dual) + y.mean(dtype=np.float64)
    np.testing.assert_allclose(encoder.predict(X), expected, atol=1e-4 * expected.std())


@pytest.mark.parametrize("chunk", [7, 400])
def test_chunks_on_disk_are_read_once(chunk, tmp_path, monkeypatch):
    X, Y = simulate(v=500)
    with h5py.File(tmp_path / "y.h5", "w") as file:
        dataset = file.create_dataset("Y", data=Y, chunks=(60, chunk))
        reads = []
        read = Responses.read
        monkeypatch.setattr(Responses, "read", lambda self, part: reads.append(part) or read(self, part))
        encoder = RidgeCV(max_memory=400_000).fit(X, dataset)
    starts = [part.start for part in reads]
    assert starts == sorted(set(starts)) and all(start % chunk == 0 for start in starts)
    np.testing.assert_allclose(encoder.coef_, RidgeCV().fit(X, Y).coef_, rtol=1e-9)


def test_units_that_are_no_table():
    for shape, message in (((60, 0), "no unit at all"), ((60, 2, 2), "average over time first")):
        with pytest.raises(ValueError, match=message):
            Responses(np.zeros(shape))


# Units that cannot be fitted or scored


def test_units_with_nan_are_left_out_and_counted_once():
    X, Y = simulate()
    holed = Y.copy()
    holed[3, 1] = holed[:, 4] = np.nan
    with pytest.warns(UserWarning, match="2 of 5 units hold NaN") as caught:
        encoder = RidgeCV(keep_scores=True).fit(X, holed)
    assert len(caught) == 1
    whole = RidgeCV(keep_scores=True).fit(X, Y)
    for name in ("alpha_", "cv_score_", "cv_scores_", "coef_", "intercept_"):
        values = getattr(encoder, name)
        assert np.isnan(values[..., [1, 4]]).all()
        np.testing.assert_allclose(values[..., [0, 2, 3]], getattr(whole, name)[..., [0, 2, 3]], rtol=1e-9)
    predicted = encoder.predict(X)
    assert np.isnan(predicted[:, [1, 4]]).all()
    np.testing.assert_allclose(predicted[:, [0, 2, 3]], whole.predict(X)[:, [0, 2, 3]])
    assert encoder.score(X, holed) == pytest.approx(
        RidgeCV(keep_scores=True).fit(X, Y[:, [0, 2, 3]]).score(X, Y[:, [0, 2, 3]])
    )


@pytest.mark.parametrize("per_unit", [True, False])
def test_constant_units_are_predicted_as_their_constant(per_unit):
    X, Y = simulate()
    flat = Y.copy()
    flat[:, 2] = 0.1
    with pytest.warns(UserWarning, match="1 of 5 units have no cross-validated score") as caught:
        encoder = RidgeCV(per_unit=per_unit).fit(X, flat)
    assert len(caught) == 1
    np.testing.assert_array_equal(encoder.predict(X)[:, 2], np.full(60, 0.1))
    assert np.isnan(encoder.cv_score_[2])
    assert np.isfinite(encoder.cv_score_[[0, 1, 3, 4]]).all()
    if per_unit:
        assert encoder.alpha_[2] == encoder.alphas_[-1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_fold_is_left_out_of_the_average(dtype):
    """A unit silent in one test fold is scored by the others; one silent in a training set is too."""
    X, Y = simulate(dtype=dtype)
    Y = Y.copy()
    Y[:12, 0] = 0.1
    Y[12:, 1] = 0.1
    folds = list(KFold(5).split(X))
    with pytest.warns(UserWarning, match="1 of 5 units"):
        encoder = RidgeCV(alphas=[1.0], cv=folds).fit(X, Y)
    assert np.isnan(encoder.cv_score_[1])  # four folds test, and the fifth trains, on its silence
    without_first = RidgeCV(alphas=[1.0], cv=folds[1:]).fit(X, Y[:, [0, 2]])
    np.testing.assert_allclose(encoder.cv_score_[0], without_first.cv_score_[0], rtol=1e-5)


# Bad input


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"score": "r3"}, "score='r3' is unknown; did you mean 'r"),
        ({"score": ["r"]}, "score=.* is unknown"),
        ({"alphas": [1.0, 0.0]}, "alphas holds 0"),
        ({"alphas": [1.0, -2.0]}, "alphas holds -2"),
        ({"alphas": [1.0, np.inf]}, "alphas holds inf"),
        ({"alphas": []}, "alphas is empty"),
        ({"alphas": "auto"}, "alphas='auto': expected numbers above zero, or None for 21 from 0.01 to 1e.08"),
        ({"cv": 1}, "cv=1: the number of folds must lie between 2 and 60"),
        ({"cv": 61}, "cv=61"),
        ({"cv": "five"}, "cv='five'"),
        ({"cv": 2.5}, "cv=2.5"),
        ({"cv": True}, "cv=True"),
        ({"cv": []}, "cv holds no fold"),
        ({"cv": [(np.arange(30), np.arange(29, 60))]}, "fold 0 of cv has 1 rows in both"),
        ({"cv": [(np.arange(30), np.arange(30, 61))]}, "test rows of fold 0 of cv reach from 30 to 60"),
        ({"cv": [(np.arange(30), [])]}, "test rows of fold 0 of cv have shape"),
        ({"cv": [(np.arange(30), [31.0])]}, "dtype float64"),
        ({"cv": [np.arange(30)]}, "expected a pair"),
        ({"cv": LeaveOneOut()}, "test folds of one row"),
        ({"nested": True, "cv": 2}, "nested=True with 2 folds.*at least three folds"),
        ({"nested": True, "cv": [(np.arange(40), np.arange(40, 60))] * 2}, "nested=True with 2 folds"),
        ({"nested": True, "per_unit": False}, "nested=True with per_unit=False"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"max_memory": 0}, "max_memory=0"),
        ({"max_memory": np.inf}, "max_memory=inf"),
        ({"max_memory": "1GB"}, "max_memory='1GB'"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    X, Y = simulate()
    with pytest.raises(ValueError, match=message):
        RidgeCV(**parameters).fit(X, Y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("shape", [(60, 8), (30, 80)])
def test_cuda_device_gives_the_same(shape):
    X, Y = simulate(*shape)
    here, there = RidgeCV(keep_scores=True, device="cpu").fit(X, Y), RidgeCV(keep_scores=True, device="cuda").fit(X, Y)
    np.testing.assert_allclose(there.cv_scores_, here.cv_scores_, atol=1e-9)
    np.testing.assert_allclose(there.coef_, here.coef_, atol=1e-9)
    np.testing.assert_allclose(there.predict(X), here.predict(X), atol=1e-9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_device():
    X, Y = simulate()
    with pytest.raises(ValueError, match="torch finds no CUDA device"):
        RidgeCV(device="cuda").fit(X, Y)


def test_data_out_of_range():
    X, Y = simulate()
    encoder = RidgeCV()
    with pytest.raises(ValueError, match=r"X has 3 dimensions \(shape \(60, 2, 4\)\).*flatten the tokens"):
        encoder.fit(X.reshape(60, 2, 4), Y)
    with pytest.raises(ValueError, match="X has 60 rows and Y has 59"):
        encoder.fit(X, Y[:-1])
    with pytest.raises(ValueError, match=r"groups has shape \(59,\); expected \(60,\)"):
        encoder.fit(X, Y, groups=np.arange(59))
    with pytest.raises(ValueError, match="between 2 and 3, the number of groups"):
        encoder.fit(X, Y, groups=np.arange(60) % 3)
    with pytest.raises(ValueError, match=r"1 sample\(s\)"):
        encoder.fit(X[:1], Y[:1])
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="Input X contains"):
            encoder.fit(np.where(np.arange(8) == 1, bad, X), Y)
        with pytest.raises(ValueError, match="Input Y contains"):
            encoder.fit(X, np.where(np.arange(60) == 1, bad, Y[:, 0]))
    with pytest.raises(ValueError, match="contains infinity"):
        encoder.fit(X, np.where(np.arange(5) == 1, np.inf, Y))
    with pytest.raises(ValueError, match="every unit of Y"):
        encoder.fit(X, np.full_like(Y, np.nan))
    with pytest.raises(ValueError, match="flatten the tokens"):
        encoder.fit(X, Y).predict(X.reshape(60, 2, 4))


@pytest.mark.parametrize("per_unit", [True, False])
def test_a_fit_that_fails_leaves_weights_on_disk_alone(per_unit, tmp_path):
    X, Y = simulate()
    path = tmp_path / "weights.npy"
    RidgeCV(weights=path, per_unit=per_unit).fit(X, Y)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="every unit of Y"):
        RidgeCV(weights=path, per_unit=per_unit).fit(X, np.full_like(Y, np.nan))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_features_of_half_precision_are_computed_in_single():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(60, 20)).astype(np.float16), rng.normal(size=(60, 3)).astype(np.float32)
    half, single = (RidgeCV(alphas=[1.0, 10.0], cv=3).fit(given, Y) for given in (X, X.astype(np.float32)))
    np.testing.assert_array_equal(half.coef_, single.coef_)
    assert half.coef_.dtype == np.float32 and half.predict(X).dtype == np.float32
