"""Bootstraps, ceilings, tests and fitted models against rsatoolbox, in the same samples."""

import warnings

import numpy as np
import pytest
from scipy.stats import t as student

from neuralign.align.inference import (
    compare_models,
    dual_variance,
    weighted_ceilings,
    weighted_similarities,
)
from neuralign.align.inference.ceilings import subject_ceilings
from neuralign.align.inference.crossvalidation import automatic_folds
from neuralign.align.inference.dual import small_sample, variance_of_differences
from neuralign.align.rdm_models import InterpolatedRDM, SelectedRDM, WeightedRDM

rsatoolbox = pytest.importorskip("rsatoolbox")
from rsatoolbox.inference import bootstrap_sample, eval_bootstrap_pattern, eval_bootstrap_rdm, eval_dual_bootstrap  # noqa: E402
from rsatoolbox.model import ModelFixed, ModelInterpolate, ModelSelect, ModelWeighted  # noqa: E402
from rsatoolbox.model.fitter import fit_interpolate, fit_regress_nn, fit_select  # noqa: E402
from rsatoolbox.util import inference_util  # noqa: E402

THEIRS = {
    "pearson": "corr",
    "spearman": "spearman",
    "rho-a": "rho-a",
    "tau-a": "tau-a",
    "tau-b": "tau-b",
    "cosine": "cosine",
    "cosine-whitened": "cosine_cov",
    "pearson-whitened": "corr_cov",
}
WHITENED = ("cosine-whitened", "pearson-whitened")
N_STIMULI, N_SUBJECTS, N = 14, 5, 6


@pytest.fixture
def vectors():
    """Two models and five subjects."""
    rng = np.random.default_rng(0)
    common = rng.uniform(1, 2, N_STIMULI * (N_STIMULI - 1) // 2)
    return common + rng.uniform(0, 1, (2, len(common))), common + rng.uniform(0, 2, (N_SUBJECTS, len(common)))


def theirs(vectors):
    return rsatoolbox.rdm.RDMs(np.array(vectors))


def counts(rows, n):
    return np.stack([np.bincount(row, minlength=n) for row in rows])


def quietly(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the ceiling of tau is approximate
        return function(*arguments, **options)


@pytest.mark.parametrize("method", THEIRS)
def test_bootstrap_over_stimuli(method, vectors):
    x, y = vectors
    np.random.seed(3)  # noqa: NPY002 - theirs draws from the global generator
    draws = [np.random.randint(0, N_STIMULI, N_STIMULI) for _ in range(N)]  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    models = [ModelFixed(str(k), row) for k, row in enumerate(x)]
    expected = quietly(eval_bootstrap_pattern, models, theirs(y), method=THEIRS[method], N=N)
    weights = counts(draws, N_STIMULI)
    found = weighted_similarities(x, y, method, weights).mean(2)
    np.testing.assert_allclose(found, expected.evaluations, rtol=1e-9)
    lower, upper = weighted_ceilings(y, method, weights).T
    if method in WHITENED:  # theirs pools without whitening, and so falls short of the bound
        assert (upper >= expected.noise_ceiling[1] - 1e-12).all()
        assert (upper > expected.noise_ceiling[1] + 1e-5).any()
    else:
        np.testing.assert_allclose([lower, upper], expected.noise_ceiling, rtol=1e-9)


@pytest.mark.parametrize("method", THEIRS)
def test_three_bootstraps_and_their_variance(method, vectors, monkeypatch):
    x, y = vectors
    np.random.seed(4)  # noqa: NPY002
    draws = []

    def recorded(*arguments, **options):
        sample, subjects, stimuli = bootstrap_sample(*arguments, **options)
        draws.append((subjects, stimuli))
        return sample, subjects, stimuli

    monkeypatch.setattr("rsatoolbox.inference.evaluate.bootstrap_sample", recorded)
    models = [ModelFixed(str(k), row) for k, row in enumerate(x)]
    expected = quietly(eval_dual_bootstrap, models, theirs(y), method=THEIRS[method], N=N)
    v, w = counts([draw[0] for draw in draws], N_SUBJECTS), counts([draw[1] for draw in draws], N_STIMULI)
    ones_v, ones_w = np.ones_like(v), np.ones_like(w)
    found, bounds = [], []
    for stimuli, subjects in ((w, v), (ones_w, v), (w, ones_v)):  # both, subjects, stimuli: their order
        similarity = weighted_similarities(x, y, method, stimuli)
        found.append((similarity * subjects[:, None]).sum(2) / N_SUBJECTS)
        # Theirs averages the bounds over the different subjects of a sample, however often each occurs.
        bounds.append(np.nanmean(subject_ceilings(y, method, stimuli, subjects), axis=1))
    scored = ~np.isnan(expected.evaluations[:, 0, 0, 0, 0])
    assert scored.sum() >= N - 1
    for k in range(3):
        np.testing.assert_allclose(found[k][scored], expected.evaluations[scored, :, 0, 0, k], rtol=1e-9)
        if method not in WHITENED:
            np.testing.assert_allclose(bounds[k][scored].T, expected.noise_ceiling[:, scored, 0, k], rtol=1e-9)
    columns = [np.concatenate([one, np.zeros((N, 1))], axis=1)[scored] for one in found]
    total = dual_variance(*(variance_of_differences(one) for one in columns), N_SUBJECTS, N_STIMULI)
    model_variance, difference_variance, _ = inference_util.extract_variances(
        expected.variances, True, N_SUBJECTS, N_STIMULI
    )
    np.testing.assert_allclose(total[:2, 2], model_variance, rtol=1e-9)
    np.testing.assert_allclose(total[0, 1], difference_variance[0], rtol=1e-9)


def test_bootstrap_over_subjects(vectors):
    x, y = vectors
    np.random.seed(5)  # noqa: NPY002
    draws = [np.random.randint(0, N_SUBJECTS, N_SUBJECTS) for _ in range(N)]  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    models = [ModelFixed(str(k), row) for k, row in enumerate(x)]
    expected = eval_bootstrap_rdm(models, theirs(y), method="rho-a", N=N, boot_noise_ceil=False)
    plain = weighted_similarities(x, y, "rho-a", np.ones((1, N_STIMULI), int))[0]
    found = counts(draws, N_SUBJECTS) @ plain.T / N_SUBJECTS
    np.testing.assert_allclose(found, expected.evaluations, rtol=1e-9)
    single, _, _ = inference_util.extract_variances(expected.variances, False, N_SUBJECTS, None)
    ours = small_sample(N_SUBJECTS, "n_subjects") * found.var(0, ddof=1)
    np.testing.assert_allclose(ours, single, rtol=1e-9)


def test_dual_formula_on_any_three_variances():
    three = np.random.default_rng(0).uniform(0, 1, (3, 200))
    for n_subjects, n_stimuli in ((4, 92), (20, 10), (2, 3)):
        expected = inference_util._dual_bootstrap(three, n_subjects, n_stimuli)
        np.testing.assert_allclose(dual_variance(*three, n_subjects, n_stimuli), expected, rtol=1e-12)


def test_tests(vectors):
    x, y = vectors
    found = compare_models(x, y, "pearson", over="both", bootstrap=50, variance="bootstrap")
    evaluations = found.scores[None]
    dof = N_SUBJECTS - 1
    assert found.dof == dof
    expected = inference_util.t_tests(evaluations, found.difference_variance[[0], [1]], dof)
    np.testing.assert_allclose(found.pairwise("none")["p"], expected[0, 1], rtol=1e-9)
    np.testing.assert_allclose(found.p_zero, inference_util.t_test_0(evaluations, found.variance, dof), rtol=1e-9)
    expected = inference_util.t_test_nc(evaluations, found.ceiling_variance[:, 0], found.ceiling[0], dof)
    np.testing.assert_allclose(found.p_ceiling, expected, rtol=1e-9)


def test_small_p_values_are_not_zero(vectors):
    """Theirs are one minus the distribution function, which is 0 beyond eight standard errors."""
    x, y = vectors
    found = compare_models(
        x, np.tile(y, (8, 1)) + 1e-3 * np.random.default_rng(1).normal(size=(40, 91)), over="subjects"
    )
    theirs_p = inference_util.t_test_0(found.scores[None], found.variance, found.dof)
    t = found.scores / np.sqrt(found.variance)
    assert (t > 20).all() and (theirs_p <= 1e-15).all()
    np.testing.assert_allclose(found.p_zero, student.sf(t, found.dof), rtol=1e-9)
    assert (found.p_zero > 0).all()


def test_bootstrap_p_values_stay_probabilities():
    """Theirs, one plus a count over the number of samples, exceeds 1 for a model that is never above zero."""
    from neuralign.align.inference.tests import bootstrap_p

    samples = -np.random.default_rng(0).uniform(0.1, 1, (50, 1))
    assert inference_util.zero_tests(samples, "bootstrap")[0] > 1
    assert bootstrap_p(samples)[0] == pytest.approx(2 / 51)
    assert bootstrap_p(np.array([[1.0], [-1.0]]))[0] == 1
    with pytest.raises(ValueError):  # their test against the ceiling has the shape of another array
        inference_util.nc_tests(np.ones((50, 3)), np.ones((2, 50)), "bootstrap")


def test_folds():
    for n in range(6, 100):
        share = 1 - 1 / np.e
        expected = inference_util.default_k_pattern(share * n), inference_util.default_k_rdm(share * n)
        assert automatic_folds(n, n) == expected


@pytest.mark.parametrize("method", ["cosine", "pearson", "cosine-whitened", "pearson-whitened"])
def test_non_negative_weights(method, vectors):
    x = np.concatenate([*vectors, np.random.default_rng(5).uniform(0, 1, (2, 91))])
    components, y = np.concatenate([x[:2], x[-2:], -x[:1]]), x[2:-2]
    model = ModelWeighted("weighted", theirs(components))
    expected = model.predict(fit_regress_nn(model, theirs(y), method=THEIRS[method]))
    found = WeightedRDM(components).fit(y, method=method)
    assert (found.weights >= 0).all() and (found.weights == 0).any()
    once = np.ones((1, N_STIMULI), int)
    scores = weighted_similarities(np.stack([found.predict(), expected]), y, method, once)[0].mean(1)
    assert scores[0] == pytest.approx(scores[1], rel=1e-9)
    assert weighted_similarities(found.predict()[None], expected[None], method, once).item() == pytest.approx(1)


def test_selected_and_interpolated(vectors):
    x = np.concatenate([vectors[0], np.random.default_rng(5).uniform(0, 3, (2, 91))])
    y = vectors[1]
    select = ModelSelect("select", theirs(x))
    for method in ("pearson", "rho-a", "cosine-whitened"):
        assert SelectedRDM(x).fit(y, method=method).weights[fit_select(select, theirs(y), method=THEIRS[method])] == 1
    for method in ("cosine", "pearson", "cosine-whitened"):
        between = ModelInterpolate("between", theirs(x))
        expected = between.predict(fit_interpolate(between, theirs(y), method=THEIRS[method]))
        found = InterpolatedRDM(x).fit(y, method=method)
        scores = weighted_similarities(np.stack([found.predict(), expected]), y, method, np.ones((1, N_STIMULI), int))[
            0
        ].mean(1)
        assert scores[0] >= scores[1] - 1e-12  # theirs searches, to about five digits of the weight
        assert scores[0] == pytest.approx(scores[1], rel=1e-6)
