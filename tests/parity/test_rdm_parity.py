"""Whitened, cross-validated and Poisson RDMs, noise and spheres against rsatoolbox, and where it is at fault."""

import warnings

import numpy as np
import pytest

from neuralign.align.geometry.crossvalidated import fold_means
from neuralign.align.noise import noise_covariance, noise_precision, repeat_residuals
from neuralign.align.rdm import rdm
from neuralign.align.searchlight import searchlight, volume_neighbours

rsatoolbox = pytest.importorskip("rsatoolbox")
from rsatoolbox.data import Dataset  # noqa: E402
from rsatoolbox.data.noise import cov_from_measurements, cov_from_residuals, prec_from_residuals  # noqa: E402
from rsatoolbox.rdm import calc_rdm  # noqa: E402
from rsatoolbox.rdm.calc_unbalanced import calc_rdm_unbalanced  # noqa: E402

THEIR_NOISE = {
    "full": "full",
    "diagonal": "diag",
    "shrinkage-identity": "shrinkage_eye",
    "shrinkage-diagonal": "shrinkage_diag",
}
N_STIMULI, N_RUNS, N_UNITS = 9, 4, 12


@pytest.fixture(autouse=True)
def their_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # casts of averaged descriptors
        yield


def presentations(counts=False, per_run=1, seed=0):
    """Presentations, the number of the stimulus and the run of each, in the order of stimuli within runs."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.repeat(np.arange(N_STIMULI), per_run), N_RUNS)
    runs = np.repeat(np.arange(N_RUNS), N_STIMULI * per_run)
    X = 3 + rng.normal(size=(N_STIMULI, N_UNITS))[labels] + rng.normal(size=(len(labels), N_UNITS))
    return (rng.poisson(4, size=X.shape).astype(float) if counts else X), labels, runs


def their_data(X, labels, runs):
    return Dataset(X, obs_descriptors={"stimulus": labels, "run": runs})


def their_crossnobis(X, labels, runs, noise=None):
    data = their_data(X, labels, runs)
    return calc_rdm(data, "crossnobis", "stimulus", noise=noise, cv_descriptor="run").get_vectors()[0]


def some_precision(seed=0):
    return noise_precision(np.random.default_rng(seed).normal(size=(50, N_UNITS)))


def test_mahalanobis():
    X, precision = presentations()[0][:N_STIMULI], some_precision()
    wanted = calc_rdm(Dataset(X), "mahalanobis", noise=precision).get_vectors()[0]
    np.testing.assert_allclose(rdm(X, "mahalanobis", precision).vectors[0], wanted, rtol=1e-9)


@pytest.mark.parametrize("per_run", [1, 3])
@pytest.mark.parametrize("noise", [None, "one", "per fold"])
def test_crossnobis(noise, per_run):
    X, labels, runs = presentations(per_run=per_run)
    given = {None: None, "one": some_precision(), "per fold": [some_precision(m) for m in range(N_RUNS)]}[noise]
    found = rdm(X, "crossnobis", given, runs, labels=labels).vectors[0]
    np.testing.assert_allclose(found, their_crossnobis(X, labels, runs, given), rtol=1e-9, atol=1e-11)


def test_crossnobis_of_many_folds():
    rng = np.random.default_rng(0)
    X, labels, runs = rng.normal(size=(60, 5)), np.tile(np.arange(5), 12), np.repeat(np.arange(12), 5)
    found = rdm(X, "crossnobis", folds=runs, labels=labels).vectors[0]
    np.testing.assert_allclose(found, their_crossnobis(X, labels, runs), rtol=1e-9, atol=1e-12)


def ragged(left_out):
    """Our matrix and theirs without some presentations, and the pairs of stimuli that are in every run."""
    X, labels, runs = presentations()
    keep = np.setdiff1d(np.arange(len(X)), left_out)
    data = their_data(X[keep], labels[keep], runs[keep])
    theirs = calc_rdm_unbalanced(data, "crossnobis", "stimulus", cv_descriptor="run").get_matrices()[0]
    ours = rdm(X[keep], "crossnobis", folds=runs[keep], labels=labels[keep])
    complete = [k for k, name in enumerate(ours.stimulus_ids) if int(name) not in labels[left_out]]
    return ours.matrices[0], theirs, np.ix_(complete, complete)  # both in the order of first appearance


def test_ragged_folds_against_their_unbalanced_estimator():
    """The same between stimuli that are in every run. Where one is missing, theirs takes the products of a stimulus
    with itself from other pairs of runs than the products of two, so that a difference of runs enters."""
    ours, theirs, complete = ragged([3, 13])
    np.testing.assert_allclose(ours[complete], theirs[complete], rtol=1e-9, atol=1e-12)
    assert np.isfinite(ours).all()


def test_a_stimulus_in_one_run_is_unknown_by_itself():
    """Theirs is then unknown for every pair of stimuli."""
    ours, theirs, complete = ragged([3, 12, 30])
    assert np.isnan(ours).sum() == 2 * (N_STIMULI - 1)
    assert np.isfinite(ours[complete]).all()
    off_diagonal = ~np.eye(N_STIMULI, dtype=bool)
    assert np.isnan(theirs[off_diagonal]).all()


def test_means_of_runs_do_not_enter_ragged_crossnobis():
    """A run that adds a pattern to all stimuli changes nothing, whichever stimuli it lacks."""
    X, labels, runs = presentations()
    keep = np.setdiff1d(np.arange(len(X)), [3, 13])
    shifted = X + 5 * np.random.default_rng(7).normal(size=(N_RUNS, N_UNITS))[runs]
    one, other = (rdm(part[keep], "crossnobis", folds=runs[keep], labels=labels[keep]).vectors for part in (X, shifted))
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)
    theirs = [
        calc_rdm_unbalanced(
            their_data(part[keep], labels[keep], runs[keep]), "crossnobis", "stimulus", cv_descriptor="run"
        ).get_vectors()
        for part in (X, shifted)
    ]
    assert np.abs(theirs[0] - theirs[1]).max() > 1


@pytest.mark.parametrize("prior", [(1.0, 0.1), (2.0, 0.3)])
def test_poisson(prior):
    X, labels, runs = presentations(counts=True)
    data = their_data(X, labels, runs)
    wanted = calc_rdm(data, "poisson", "stimulus", prior_lambda=prior[0], prior_weight=prior[1]).get_vectors()[0]
    np.testing.assert_allclose(rdm(X, "poisson", labels=labels, prior=prior).vectors[0], wanted, rtol=1e-9)


def test_cross_validated_poisson_is_the_mean_of_all_folds():
    """Theirs is that of the fold that sorts last; each fold is made the last in turn, and the mean is ours."""
    X, labels, runs = presentations(counts=True)
    each = []
    for last in range(N_RUNS):
        data = their_data(X, labels, np.where(runs == last, 100, runs))
        each.append(calc_rdm(data, "poisson_cv", "stimulus", cv_descriptor="run").get_vectors()[0])
    found = rdm(X, "poisson-cv", folds=runs, labels=labels).vectors[0]
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-9, atol=1e-12)
    at_once = calc_rdm(their_data(X, labels, runs), "poisson_cv", "stimulus", cv_descriptor="run").get_vectors()[0]
    np.testing.assert_allclose(at_once, each[-1])
    assert np.abs(at_once - found).max() > 0.05


@pytest.mark.parametrize("shape", [(50, 12), (12, 30)])
@pytest.mark.parametrize("method", THEIR_NOISE)
def test_noise(method, shape):
    rng = np.random.default_rng(0)
    X = 2 + rng.normal(size=shape) @ rng.normal(size=(shape[1], shape[1]))
    for dof in (None, 9):
        wanted = cov_from_residuals(X, dof, THEIR_NOISE[method])
        np.testing.assert_allclose(noise_covariance(X, method, dof), wanted, rtol=1e-9, atol=1e-10)
    if method != "full" or shape[0] > shape[1]:
        precision = noise_precision(X, method)
        wanted = prec_from_residuals(X, method=THEIR_NOISE[method])
        ours = np.diag(precision) if method == "diagonal" else precision
        np.testing.assert_allclose(ours, wanted, rtol=1e-8, atol=1e-9 * np.abs(wanted).max())


def test_degrees_of_freedom_of_repeats():
    """Theirs are (stimuli - 1) x repeats, ours stimuli x (repeats - 1): at 50 x 4 their variance is 0.765 of ours."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(50), 4)
    X = rng.normal(size=(50, 6))[labels] + rng.normal(size=(200, 6))
    before = X.copy()
    residuals, dof = repeat_residuals(X, labels)
    ours = noise_covariance(residuals, "full", dof)
    np.testing.assert_array_equal(X, before)
    theirs = cov_from_measurements(Dataset(X, obs_descriptors={"stimulus": labels}), "stimulus", method="full")
    np.testing.assert_allclose(theirs / ours, (3 * 50) / (49 * 4), rtol=1e-9)
    np.testing.assert_allclose(theirs / ours, 0.7653, atol=1e-4)
    assert np.diag(ours).mean() == pytest.approx(1, abs=0.15)


def test_twelve_repeats_of_labels_of_one_letter():
    """Their folds are cut to the length of the labels: the eleventh and twelfth repeat fall into fold 1."""
    from rsatoolbox.rdm.calc import _gen_default_cv_descriptor

    labels = np.tile(np.array(["a", "b", "c"]), 12)
    X = np.random.default_rng(0).normal(size=(36, 7))
    theirs = _gen_default_cv_descriptor(Dataset(X, obs_descriptors={"stimulus": labels}), "stimulus")
    assert len(np.unique(theirs)) == 10
    _, _, folds = fold_means(X, labels)
    assert len(folds) == 12
    counted = np.repeat(np.arange(12), 3)
    found = rdm(X, "crossnobis", labels=labels).vectors[0]
    np.testing.assert_allclose(found, their_crossnobis(X, labels, counted), rtol=1e-9, atol=1e-12)


def test_patterns_a_millionth_apart_at_ten_thousand():
    """Theirs is zero, or below, by the rounding of the squares of ten thousands."""
    X = 1e4 + np.random.default_rng(0).normal(size=(5, 100))
    X[1] = X[0] + 1e-6 * np.random.default_rng(1).normal(size=100)
    true = ((X[0] - X[1]) ** 2).mean()
    theirs = calc_rdm(Dataset(X), "euclidean").get_vectors()[0, 0]
    assert abs(theirs - true) > true
    assert rdm(X, "sqeuclidean").vectors[0, 0] == pytest.approx(true, rel=1e-12)


def test_a_constant_pattern_is_counted():
    X = np.random.default_rng(0).normal(size=(5, 10))
    X[2] = 1.5
    with pytest.warns(UserWarning, match="1 of 5 patterns are constant"):
        found = rdm(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = calc_rdm(Dataset(X), "correlation").get_vectors()
    np.testing.assert_array_equal(np.isnan(found.vectors), np.isnan(theirs))
    np.testing.assert_allclose(found.vectors, theirs, rtol=1e-9)


def test_spheres():
    """The same centres; theirs hold voxels outside the mask, unless cut to it, when the share counts for nothing."""
    from rsatoolbox.util.searchlight import get_volume_searchlight

    mask = np.random.default_rng(0).random((7, 7, 7)) < 0.85
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(mask.sum())
    number = number.ravel()
    for radius, share in ((2, 0.7), (2.5, 0.85), (3, 0.5)):
        centres, members = get_volume_searchlight(mask, radius, share)
        ours = volume_neighbours(mask, radius, least=share)
        np.testing.assert_array_equal(ours.centres, number[centres])
        for k, one in enumerate(members):
            inside = number[one]
            assert sorted(ours[k]) == sorted(inside[inside >= 0])
    cut, _ = get_volume_searchlight(mask, 2, 0.7, truncate_at_boundary=True)
    assert len(cut) == mask.sum()


@pytest.mark.parametrize("ours, theirs", [("sqeuclidean", "euclidean"), ("correlation", "correlation")])
def test_searchlight(ours, theirs):
    from rsatoolbox.util.searchlight import get_searchlight_RDMs, get_volume_searchlight

    mask = np.ones((5, 5, 5), bool)
    X = np.random.default_rng(0).normal(size=(8, 125))
    centres, members = get_volume_searchlight(mask, 2, 0.5)
    wanted = get_searchlight_RDMs(X, centres, members, np.arange(8), method=theirs, verbose=False).get_vectors()
    around = volume_neighbours(mask, 2, least=0.5)
    found = np.concatenate([vectors for _, vectors in searchlight(X, around, method=ours)])
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
