"""Faults of published code for geometry, topology and similarity, one test each, that ours does not have.

Each test shows the right answer from a definition, and where it is short also what the fault gives. Names in brackets
are the packages at fault: rsatoolbox 0.3.2, TopologicalRSA 18e5beb, netrep, google/svcca and others.
"""

import inspect
import re
import resource
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist, squareform

import neuralign
from neuralign.align import compare, rdm, rsa_ceiling
from neuralign.align.inference import compare_models
from neuralign.align.noise import noise_covariance, repeat_residuals
from neuralign.align.similarity import card, estimator, similarity
from neuralign.align.topology import rgdm, rgtm, rtd
from neuralign.datasets.rdms import RDMs
from neuralign.datasets.recording import Recording

ALIGN = Path(inspect.getfile(neuralign.align)).parent


def uniform(n_rdms, n_stimuli, seed=0):
    return np.random.default_rng(seed).uniform(size=(n_rdms, n_stimuli * (n_stimuli - 1) // 2))


def recording(n_stimuli=10, n_repeats=4, n_units=6, seed=0, noise=0.5):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(n_stimuli, n_units))
    responses = np.tile(signal, (n_repeats, 1)) + noise * rng.normal(size=(n_repeats * n_stimuli, n_units))
    names = [f"s{k}" for k in range(n_stimuli)]
    table = {"stimulus": names * n_repeats, "run": np.repeat(np.arange(n_repeats), n_stimuli).astype(str)}
    return Recording(responses, pd.DataFrame(table), pd.DataFrame({"region": ["V1"] * n_units}))


# Dissimilarities and noise


def test_cross_validated_poisson_is_the_mean_over_folds():
    """[rsatoolbox] its loop keeps the last fold only."""
    counts = np.random.default_rng(0).poisson(4.0, size=(4, 5, 30)).astype(float)

    def of_fold(k):
        train, test = np.delete(counts, k, axis=0).mean(0), counts[k]
        rates, logs = (train + 0.1) / 1.1, np.log((test + 0.1) / 1.1)
        kernel = rates @ logs.T / 30
        d = np.add.outer(np.diag(kernel), np.diag(kernel)) - kernel - kernel.T
        return d[np.triu_indices(5, 1)]

    folds = np.array([of_fold(k) for k in range(4)])
    found = rdm(counts, "poisson-cv").vectors[0]
    np.testing.assert_allclose(found, folds.mean(0), atol=1e-10)
    assert np.abs(found - folds[-1]).max() > 0.01


def test_noise_of_repeats_has_its_degrees_of_freedom():
    """[rsatoolbox] (conditions - 1) x repeats: 0.7653 of the variance for 50 x 4; and it subtracts in place."""
    X = np.random.default_rng(0).normal(size=(200, 3))
    kept = X.copy()
    residuals, dof = repeat_residuals(X, np.tile(np.arange(50), 4))
    np.testing.assert_array_equal(X, kept)
    assert dof == 150
    variances = np.diag(noise_covariance(residuals, "full", dof=dof))
    by_stimulus = X.reshape(4, 50, 3).var(0, ddof=1).mean(0)
    np.testing.assert_allclose(variances, by_stimulus, rtol=1e-10)


def test_noise_of_one_recording_does_not_touch_that_of_another():
    """[rsatoolbox] a list of degrees of freedom reaches every data set as a whole."""
    first, second = recording(n_repeats=3), recording(n_repeats=5, seed=1)
    assert [repeat_residuals(one)[1] for one in (first, second)] == [20, 40]


def test_noise_leaves_gaps_out_and_counts_them():
    """[rsatoolbox, issue 389] NaN in one presentation spreads over the covariance."""
    X = np.random.default_rng(0).normal(size=(40, 3))
    gaps = X.copy()
    gaps[7, 1] = np.nan
    with pytest.warns(UserWarning, match="1"):
        found = noise_covariance(gaps)
    np.testing.assert_allclose(found, noise_covariance(np.delete(X, 7, axis=0)), atol=1e-12)


def test_ragged_repeats_take_the_same_road():
    """[rsatoolbox] another function, 200 times as slow, which loses memory on every call."""
    X = np.random.default_rng(0).normal(size=(24, 50))
    labels, folds = np.tile(np.arange(6), 4), np.repeat(np.arange(4), 6)
    order = np.random.default_rng(1).permutation(24)
    balanced = rdm(X, "crossnobis", labels=labels, folds=folds)
    shuffled = rdm(X[order], "crossnobis", labels=labels[order], folds=folds[order]).reorder(balanced.stimulus_ids)
    np.testing.assert_allclose(shuffled.vectors, balanced.vectors, atol=1e-12)
    for _ in range(20):
        rdm(X[:-1], "crossnobis", labels=labels[:-1], folds=folds[:-1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(200):
        rdm(X[:-1], "crossnobis", labels=labels[:-1], folds=folds[:-1])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 5000  # kB


def test_twelve_repeats_of_short_labels_are_twelve_folds():
    """[rsatoolbox] fold names are cut to the length of the labels: "10" and "11" become "1"."""
    X = np.random.default_rng(0).normal(size=(36, 8))
    labels = np.array(list("abc") * 12)
    by_default = rdm(X, "crossnobis", labels=labels).vectors
    named = rdm(X, "crossnobis", labels=labels, folds=np.repeat([str(k) for k in range(12)], 3)).vectors
    np.testing.assert_allclose(by_default, named, atol=1e-12)
    cut = rdm(X, "crossnobis", labels=labels, folds=np.repeat([str(k)[:1] for k in range(12)], 3)).vectors
    assert np.abs(cut - named).max() > 1e-3


def test_nearly_identical_patterns_far_from_zero():
    """[rsatoolbox] 0, or below it, where 1.01e-12 is right."""
    rng = np.random.default_rng(0)
    X = 1e4 + rng.normal(size=(6, 100))
    X[1] = X[0] + 1e-6 * rng.normal(size=100)
    known = ((X[0] - X[1]) ** 2).mean()
    found = rdm(X, "sqeuclidean").vectors[0]
    assert found[0] == pytest.approx(known, rel=1e-6)
    assert 0.5e-12 < known < 2e-12
    assert (found >= 0).all()


def test_constant_patterns_are_counted():
    """[rsatoolbox] a row of NaN without a word."""
    X = np.random.default_rng(0).normal(size=(6, 9))
    X[2] = 3.0
    with pytest.warns(UserWarning, match="1 of 6"):
        found = rdm(X, "correlation")
    missing = np.isnan(found.matrices[0])
    assert missing.sum() == 10
    assert missing[2].sum() == 5


def test_time_resolved_rdms_keep_their_folds():
    """[rsatoolbox] calc_rdm_movie of a list drops the folds, so the bias of noise comes back."""
    from neuralign.align.time import rdm_over_time

    rng = np.random.default_rng(0)
    responses = rng.normal(size=(5 * 6, 40, 3))
    table = {"stimulus": [f"s{k}" for k in range(6)] * 5, "run": np.repeat(list("abcde"), 6)}
    brain = Recording(responses, pd.DataFrame(table), pd.DataFrame({"region": ["V1"] * 40}), times=np.arange(3.0))
    found = rdm_over_time(brain, "crossnobis", folds="run")
    for k in range(3):
        alone = rdm(responses[:, :, k], "crossnobis", labels=table["stimulus"], folds=table["run"])
        here = found.reorder(alone.stimulus_ids)
        np.testing.assert_allclose(here.vectors[k], alone.vectors[0], atol=1e-10)
    assert (found.vectors < 0).any()


def test_searchlights_take_noise_and_an_open_border():
    """[rsatoolbox, issues 356 and 466] no noise argument; spheres at the border of the mask."""
    from neuralign.align.searchlight import searchlight, volume_neighbours

    mask = np.ones((4, 4, 4), bool)
    spheres = volume_neighbours(mask, 1.5)
    places = np.argwhere(mask)
    for k in range(len(spheres)):
        near = np.linalg.norm(places - places[spheres.centres[k]], axis=1) < 1.5
        np.testing.assert_array_equal(np.sort(spheres[k]), np.flatnonzero(near))
    rng = np.random.default_rng(0)
    X, scale = rng.normal(size=(6, 64)), rng.uniform(0.5, 2.0, 64)
    model = uniform(1, 6)
    found = searchlight(X, spheres, model, "mahalanobis", "pearson", noise=scale)
    for k in (0, 21):
        one = rdm(X[:, spheres[k]], "mahalanobis", noise=scale[spheres[k]]).vectors
        assert found[k, 0] == pytest.approx(compare(one, model, "pearson")[0, 0], abs=1e-9)


# Comparison of RDMs


def test_bures_is_a_similarity_with_a_ceiling():
    """[rsatoolbox] not usable in any evaluation; its "metric" is a squared distance among similarities."""
    rng = np.random.default_rng(0)
    subjects = np.concatenate([rdm(rng.normal(size=(8, 3)), "sqeuclidean").vectors for _ in range(4)])
    values = compare(subjects, subjects, "bures")
    np.testing.assert_allclose(np.diag(values), 1, atol=1e-9)
    assert (values <= 1 + 1e-12).all()
    assert (values >= 0).all()
    lower, upper = rsa_ceiling(subjects, "bures")
    assert lower < upper <= 1


def test_bures_of_low_rank_kernels_is_exact():
    """[rsatoolbox] roots of the eigenvalues of singular kernels keep half of the digits."""
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(20, 2)), rng.normal(size=(20, 3))
    exact = np.linalg.svd((X - X.mean(0)).T @ (Y - Y.mean(0)), compute_uv=False).sum()
    exact /= np.linalg.norm(X - X.mean(0)) * np.linalg.norm(Y - Y.mean(0))
    found = compare(rdm(X, "sqeuclidean"), rdm(Y, "sqeuclidean"), "bures")[0, 0]
    assert found == pytest.approx(exact, abs=1e-7)
    assert similarity("bures", X, Y) == pytest.approx(exact, abs=1e-13)


def test_riemannian_distance_of_what_is_no_distance():
    """[rsatoolbox] LinAlgError."""
    euclidean = rdm(np.random.default_rng(0).normal(size=(5, 20)), "sqeuclidean").vectors
    broken = np.array([[1, 1, 1, 1, 9.0, 1, 1, 1, 1, 1]])
    with pytest.warns(UserWarning, match="1 of 1"):
        assert np.isnan(compare(euclidean, broken, "riemannian")).all()
    assert np.isfinite(compare(euclidean, euclidean, "riemannian")).all()


def test_stacks_of_rdms_can_be_sliced():
    """[rsatoolbox] IndexError for a slice."""
    stack = RDMs(uniform(5, 4), list("abcd"))
    assert len(stack[1:3]) == 2
    np.testing.assert_array_equal(stack[1:3].vectors, stack.vectors[1:3])
    assert re.match(r"\d+\.\d+", neuralign.__version__)


def test_no_private_part_of_scipy_is_used():
    """[rsatoolbox] imports scipy.stats._stats, which any release may move."""
    for path in ALIGN.rglob("*.py"):
        assert not re.search(r"(from|import) +scipy[\w.]*\._", path.read_text()), path


def test_squares_keep_the_sign_of_a_correlation():
    """[Net2Brain] squared by default: a model that is opposite to the brain scores like one that fits it."""
    a = uniform(1, 8)
    assert compare(a, 1 - a, "pearson")[0, 0] == pytest.approx(-1)


# Topology


def test_thresholds_belong_to_one_rdm():
    """[rsatoolbox] quantiles over the whole stack: an RDM beside one ten times as large is another RDM."""
    one = uniform(1, 12)
    for threshold in ("rank-quantile", "value-quantile"):
        alone = rgtm(one, 0.2, 0.8, threshold)
        beside = rgtm(np.vstack([one, 10 * uniform(1, 12, seed=1)]), 0.2, 0.8, threshold)
        np.testing.assert_array_equal(beside[0], alone[0])


@pytest.mark.parametrize(("lower", "upper"), [(0.1, 0.5), (0.0, 0.075), (0.3, 0.9)])
def test_the_middle_band_is_not_cut_again(lower, upper):
    """[rsatoolbox] compares scaled values with the raw threshold: errors of up to .284 at (0, .075)."""
    values = uniform(1, 30)
    low, high = np.quantile(values, [lower, upper])
    np.testing.assert_allclose(
        rgtm(values, lower, upper, "value-quantile"), np.clip((values - low) / (high - low), 0, 1), atol=1e-12
    )


def test_transforms_leave_their_input_alone():
    """[rsatoolbox] geotopological, sqrt, positive and minmax write into the caller's array."""
    values = uniform(3, 10) - 0.1
    kept, stack = values.copy(), RDMs(values, list("abcdefghij"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for transformed in (values, stack):
            rgtm(transformed, 0.2, 0.8)
            rgdm(transformed, 0.0, 0.5)
            compare(transformed, transformed, "bures")
    np.testing.assert_array_equal(values, kept)
    np.testing.assert_array_equal(stack.vectors, kept)


def test_negative_dissimilarities_stay_in_order():
    """[rsatoolbox] with a threshold below zero, what was set to 0 enters the middle band again."""
    values = np.sort(np.random.default_rng(0).normal(0.3, 0.5, size=(1, 45)))
    found = rgtm(values, -0.3, 0.8, "absolute")
    assert (np.diff(found[0]) >= 0).all()
    np.testing.assert_allclose(found, np.clip((values + 0.3) / 1.1, 0, 1), atol=1e-12)


def test_where_thresholds_meet_there_is_a_step():
    """[TopologicalRSA] 0 / 0."""
    found = rgtm(uniform(2, 10), 0.5, 0.5)
    assert set(np.unique(found)) == {0.0, 1.0}
    assert found.mean() == pytest.approx(0.5, abs=0.03)


def test_stimuli_at_distance_zero_are_neighbours():
    """[TopologicalRSA, rsatoolbox] networkx drops edges of length 0, so the most similar pairs are not joined."""
    values = uniform(1, 20, seed=3)
    keep, drop = rgdm(values, 0.05, 0.6), rgdm(values, 0.05, 0.6, zero_edges="drop")
    closest = values[0].argmin()
    assert keep[0, closest] == 0
    assert drop[0, closest] > 0
    assert (keep <= drop + 1e-12).all()


def test_a_threshold_that_joins_everything_is_reported():
    """[TopologicalRSA, rsatoolbox] above it the right geodesics are all zero, theirs are something else."""
    with pytest.warns(UserWarning, match="distances of 1 of 1 RDMs are 0"):
        found = rgdm(uniform(1, 20), 0.5, 0.8)
    assert (found == 0).all()


def test_nearest_neighbours_do_not_depend_on_the_order_of_stimuli():
    """[TopologicalRSA] keeps an edge if the second stimulus is near to the first, not the other way round."""
    values = uniform(1, 12, seed=2)
    order = np.random.default_rng(0).permutation(12)
    shuffled = squareform(squareform(values[0])[np.ix_(order, order)])
    first = squareform(rgdm(values, variant="k-nearest", k=3, unreachable="max")[0])[np.ix_(order, order)]
    np.testing.assert_allclose(
        squareform(rgdm(shuffled, variant="k-nearest", k=3, unreachable="max").ravel()), first, atol=1e-12
    )


def test_what_no_path_reaches_is_treated_as_said():
    """[TopologicalRSA] the result of nan_to_num is thrown away, so infinities stay."""
    two_islands = pdist(np.array([[0.0], [1], [2], [3], [100], [101], [103]]))
    with pytest.warns(UserWarning, match="of the pairs in 1 of 1 RDMs are NaN"):
        missing = rgdm(two_islands, variant="k-nearest", k=1)
    assert np.isnan(missing).any()
    farthest = rgdm(two_islands, variant="k-nearest", k=1, unreachable="max")
    assert np.isfinite(farthest).all()
    assert (farthest[np.isnan(missing)] == farthest.max()).all()


def test_divergence_of_topologies_repeats():
    """[RTD] batches are drawn without a seed, so no value can be had twice."""
    X, Y = np.random.default_rng(0).normal(size=(2, 40, 3))
    first = rtd(X, Y, batch=20, n_batches=2)
    assert rtd(X, Y, batch=20, n_batches=2) == first
    assert rtd(X, Y, batch=20, n_batches=2, seed=1) != first


# Inference


def test_bootstrap_tests_of_pairs_run_and_are_probabilities():
    """[rsatoolbox, issue 379] a reshape fails; p = (count + 1) / N may exceed 1."""
    found = compare_models(uniform(3, 10), uniform(5, 10, seed=1), "pearson", over="both", bootstrap=50)
    for test in ("t", "bootstrap"):
        p = found.pairwise(test=test, correction="none")["p"]
        assert ((p > 0) & (p <= 1)).all()


def test_p_values_do_not_underflow():
    """[rsatoolbox] 2 (1 - cdf) is 0 long before the tail is."""
    brain = rdm(np.random.default_rng(0).normal(size=(60, 20))).vectors
    subjects = brain + 1e-3 * np.random.default_rng(1).normal(size=(40, brain.shape[1]))
    found = compare_models(np.vstack([brain, uniform(1, 60)]), subjects, "pearson", over="both", bootstrap=100)
    p = found.pairwise(correction="none")["p"].iloc[0]
    assert 0 < p < 1e-16


def test_random_numbers_come_from_the_seed():
    """[rsatoolbox] the global generator, no seed argument."""
    np.random.seed(1)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    models, brain = uniform(2, 8), uniform(4, 8, seed=1)
    first, again, other = (compare_models(models, brain, bootstrap=30, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.samples, again.samples)
    assert np.nanmax(np.abs(first.samples - other.samples)) > 0
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_five_stimuli():
    """[rsatoolbox, issue 334] NaN: many samples of five stimuli hold too few different ones."""
    brain = uniform(6, 5, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = compare_models(np.vstack([brain.mean(0), uniform(1, 5)]), brain, "pearson", bootstrap=200)
    assert np.isfinite(found.scores).all()
    assert np.isfinite(found.variance).all()
    assert np.isfinite(found.interval()).all()


def test_one_rdm_and_one_model():
    """[rsatoolbox, issue 357] division by zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        found = compare_models(uniform(1, 12), uniform(1, 12, seed=1), "pearson", over="stimuli", bootstrap=50)
    assert np.isfinite(found.scores).all()
    assert np.isnan(found.ceiling).any()
    assert len(found.pairwise()) == 0
    with pytest.raises(ValueError, match="subject"):
        compare_models(uniform(1, 12), uniform(1, 12, seed=1), "pearson", over="both", bootstrap=50)


def test_copies_of_a_subject_do_not_reach_its_own_ceiling():
    """[rsatoolbox, pull request 95] resampled copies of the left-out subject in the pool lift the lower bound to 1."""
    from neuralign.align.inference import weighted_ceilings

    brain = uniform(4, 12)
    whole = np.ones((1, 12), int)
    found = weighted_ceilings(brain, "pearson", whole, np.array([[3, 1, 0, 0]]))[0, 0]
    r = compare(brain[:1], brain[1:2], "pearson")[0, 0]
    assert found == pytest.approx(r, abs=1e-12)  # every copy of either is compared with the other one alone


def test_the_ceiling_of_a_squared_correlation_bounds_models():
    """[Net2Brain] divides by the lower bound, so a share can exceed 100 %; here scores stay scores."""
    brain = uniform(6, 12)
    pool = ((brain - brain.mean(1, keepdims=True)) / brain.std(1, keepdims=True)).mean(0)
    lower, upper = rsa_ceiling(brain, "pearson")
    best = compare(pool[None], brain, "pearson").mean()
    assert lower < best
    assert best == pytest.approx(upper, abs=1e-12)


# Similarity measures


def pair(seed=0, n=40, p=6, q=8):
    rng = np.random.default_rng(seed)
    code = rng.normal(size=(n, 4))
    return [code @ rng.normal(size=(4, w)) + 0.5 * rng.normal(size=(n, w)) for w in (p, q)]


def test_cka_has_no_constant_in_its_denominator():
    """[platonic-rep] adds 1e-6: responses in small units lose their similarity."""
    X, Y = pair()
    assert similarity("cka", 1e-6 * X, 1e-6 * Y) == pytest.approx(similarity("cka", X, Y), abs=1e-10)
    assert similarity("cka", 1e-6 * X, X) == pytest.approx(1, abs=1e-10)


def test_undefined_cka_is_not_zero():
    """[brain-score] 0 where the debiased norm is not positive."""
    undefined = 0
    for k in range(20):
        X, Y = np.random.default_rng(k).normal(size=(2, 30, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = similarity("cka-debiased-units", X, Y)
        assert value != 0
        undefined += np.isnan(value)
    assert undefined > 0


def test_all_canonical_correlations_are_averaged():
    """[google/svcca] stops where their cumulative sum reaches 98 %, which lifts the mean."""
    X, Y = pair(n=60, p=25, q=25)
    bases = [np.linalg.qr(side - side.mean(0))[0] for side in (X, Y)]
    rho = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    cut = rho[: 1 + np.searchsorted(np.cumsum(rho) / rho.sum(), 0.98)]
    assert similarity("cca", X, Y) == pytest.approx(rho.mean(), abs=1e-10)
    assert cut.mean() > rho.mean() + 0.01


def test_pwcca_of_a_wider_second_side():
    """[google/svcca] indexes the first side with the units of the second: IndexError."""
    X, Y = pair(p=4, q=9)
    assert 0 <= similarity("pwcca", X, Y) <= 1
    assert 0 <= similarity("pwcca", Y, X) <= 1


def test_gdv_divides_by_the_classes_once():
    """[several copies] the mean distance inside divided by their number again: far from 0 without any classes."""
    values = [
        similarity("gdv", np.random.default_rng(k).normal(size=(60, 8)), np.repeat(np.arange(3), 20)) for k in range(40)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values, ddof=1) / np.sqrt(40)


def test_similarity_of_similarity_matrices_without_their_diagonal():
    """[a script of Shi et al.] .53 with the diagonal where .48 is right: ones agree with ones."""
    X, Y = np.random.default_rng(0).normal(size=(2, 20, 50))
    assert similarity("ssm", X, Y, diagonal="in") > similarity("ssm", X, Y) + 0.1


def test_neighbours_are_scaled_here_and_not_by_the_caller():
    """[platonic-rep] inner products of what comes in: a long pattern is everybody's neighbour."""
    X, Y = pair()
    lengths = np.exp(np.random.default_rng(1).normal(size=(40, 1)))
    assert similarity("mutual-knn", lengths * X, Y) == pytest.approx(similarity("mutual-knn", X, Y), abs=1e-12)


def test_soft_matching_is_transport():
    """[ReSi] calls the mean of two best partners soft matching."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(40, 1)) + 0.1 * rng.normal(size=(40, 6))
    Y = np.hstack([X[:, :1], rng.normal(size=(40, 5))])
    assert similarity("semi-matching", X, Y, symmetric=True) > similarity("soft-matching", X, Y) + 0.1
    assert similarity("soft-matching", X, Y) == pytest.approx(similarity("bipartite-matching", X, Y), abs=1e-12)


def test_small_shape_distances_keep_their_digits():
    """[netrep] arccos of a cosine near 1 knows 1e-8 and not less."""
    X, _ = pair()
    assert similarity("shape", X, X @ np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]) < 1e-13


def test_shape_metrics_do_not_depend_on_the_unit():
    """[netrep] eigenvalues below 1e-7 in absolute terms are raised to it."""
    X, Y = pair(q=6)
    assert similarity("shape", 1e-6 * X, Y, alpha=0.0) == pytest.approx(similarity("shape", X, Y, alpha=0.0), abs=1e-9)


def test_flags_are_those_that_hold():
    """[ReSi] RSA of correlation distances is said to ignore translation, aligned cosine to depend on scale."""
    assert "translation" not in card("ssm").invariances
    assert "shift-all" in card("ssm").invariances
    X, Y = pair()
    assert similarity("ssm", X + np.arange(6), Y) != pytest.approx(similarity("ssm", X, Y), abs=1e-3)
    assert similarity("ssm", X + 5, Y) == pytest.approx(similarity("ssm", X, Y), abs=1e-9)
    assert "isotropic-scaling" in card("procrustes").invariances


def test_what_is_fitted_can_be_scored_elsewhere():
    """[platonic-rep] canonical correlations of what was fitted, plus noise: not reproducible, and 1 for p >= n."""
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(2, 60, 29))
    fitted = estimator("cca").fit(X[:30], Y[:30])
    assert fitted.score(X[:30], Y[:30]) > 0.9
    assert abs(fitted.score(X[30:], Y[30:])) < 0.2
    assert similarity("svcca", X, Y) == similarity("svcca", X, Y)
