"""Corrections for many tests against scipy, plain loops, MNE and nilearn."""

import warnings

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.stats import binom, false_discovery_control, t, ttest_1samp

from neuralign.align import multiple
from neuralign.align.inference import permutation_p
from neuralign.align.multiple import cluster_p, fdr, grid_adjacency, max_statistic_p

# False discovery rate


@pytest.mark.parametrize("method", ["bh", "by"])
def test_fdr_equals_scipy(method):
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 500):
        p = np.where(rng.random(n) < 0.3, rng.random(n) ** 4, rng.random(n))
        p[: n // 4] = p[0]  # ties
        np.testing.assert_allclose(fdr(p, method), false_discovery_control(p, method=method), rtol=1e-12)
    np.testing.assert_array_equal(fdr([0.0, 1.0], method), false_discovery_control([0.0, 1.0], method=method))


def test_fdr_rejects_as_the_step_up_procedure():
    """Reject the k smallest, k the last rank whose p is at most k / m of the level."""
    rng = np.random.default_rng(1)
    for level in (0.01, 0.05, 0.2):
        p = rng.random(60) ** 3
        ordered = np.sort(p)
        below = np.flatnonzero(ordered <= level * np.arange(1, 61) / 60)
        expected = p <= ordered[below[-1]] if len(below) else np.zeros(60, bool)
        np.testing.assert_array_equal(fdr(p) <= level, expected)


def test_missing_p_values_do_not_count():
    p = np.array([[0.01, np.nan, 0.02], [np.nan, 0.5, 0.03]])
    q = fdr(p)
    np.testing.assert_array_equal(np.isnan(q), np.isnan(p))
    np.testing.assert_allclose(q[~np.isnan(p)], false_discovery_control(p[~np.isnan(p)]))
    assert np.isnan(fdr([np.nan, np.nan])).all()
    assert fdr([]).shape == (0,)


def test_share_of_false_discoveries():
    """80 of 100 units have nothing; z of neighbours correlate at 0.5. The mean share is at most 0.8 x 5 %."""
    rng = np.random.default_rng(2)
    shares = {"bh": [], "by": []}
    for _ in range(1000):
        z = np.sqrt(0.5) * (rng.standard_normal((10, 1)) + rng.standard_normal((10, 10))).ravel()
        z[:20] += 3
        p = t.sf(z, 1e6)
        for method, found in shares.items():
            rejected = fdr(p, method) <= 0.05
            found.append(rejected[20:].sum() / max(rejected.sum(), 1))
    assert np.mean(shares["bh"]) < 0.04 + 3 * np.std(shares["bh"]) / np.sqrt(1000)
    assert np.mean(shares["bh"]) > 0.025
    assert np.mean(shares["by"]) < np.mean(shares["bh"]) / 3


def test_fdr_refuses_bad_input():
    with pytest.raises(ValueError, match="method='holm' is unknown"):
        fdr([0.1], "holm")
    with pytest.raises(ValueError, match="2 values outside 0 to 1"):
        fdr([0.1, -0.1, 1.5])


# Maximum statistic


def scores(n_draws=200, n_units=30, seed=3, dtype=np.float64):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n_draws + 1, n_units)).astype(dtype)
    values[0, :3] += 3
    return values[0], values[1:]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_p_of_the_maximum_in_plain_loops(dtype, monkeypatch):
    observed, null = scores(dtype=dtype)
    expected = [(1 + sum(draw.max() >= one for draw in null)) / 201 for one in observed]
    np.testing.assert_array_equal(max_statistic_p(observed, null), expected)
    monkeypatch.setattr(multiple, "_BLOCK", 1)
    np.testing.assert_array_equal(max_statistic_p(observed, null), expected)


def test_one_unit_is_an_ordinary_permutation_test():
    observed, null = scores(n_units=1)
    np.testing.assert_array_equal(max_statistic_p(observed, null), permutation_p(observed, null))
    ties = np.full((99, 1), 0.1 + 0.2)
    np.testing.assert_array_equal(max_statistic_p([0.3], ties), permutation_p(np.array([0.3]), ties))


def test_studentised_p_in_plain_loops():
    observed, null = scores()
    observed[4] = np.nan
    observed, null = (x * np.arange(1, 31) + np.arange(30) for x in (observed, null))
    joined = np.vstack([observed, null])
    z = (joined - joined.mean(0)) / joined.std(0)
    largest = np.nanmax(z[1:], 1)
    expected = [np.nan if np.isnan(one) else (1 + (largest >= one).sum()) / 201 for one in z[0]]
    np.testing.assert_array_equal(max_statistic_p(observed, null, studentise=True), expected)
    again = max_statistic_p(7 * observed - 3, 7 * null - 3, studentise=True)
    np.testing.assert_array_equal(again, expected)


def test_units_without_a_score_belong_to_no_family():
    observed, null = scores()
    null[:, 5] = 100
    observed[5] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = max_statistic_p(observed, null)
    assert np.isnan(p[5])
    kept = np.arange(30) != 5
    np.testing.assert_array_equal(p[kept], max_statistic_p(observed[kept], null[:, kept]))


@pytest.mark.parametrize("studentise", [False, True])
def test_missing_null_scores_only_make_p_larger(studentise):
    observed, null = scores()
    expected = max_statistic_p(observed, null, studentise)
    null[:10, 7] = np.nan
    with pytest.warns(UserWarning, match="10 of 200 draws"):
        p = max_statistic_p(observed, null, studentise)
    assert (p >= np.maximum(expected, 11 / 201)).all()
    assert p[observed.argmax()] > expected[observed.argmax()]


def test_constant_null_is_no_evidence():
    p = max_statistic_p([0.0, 2.0], np.column_stack([np.zeros(99), scores(99, 1)[1]]), studentise=True)
    assert p[0] > 0.5
    assert np.isfinite(p).all()


@pytest.mark.parametrize("studentise", [False, True])
def test_family_wise_error_of_the_maximum(studentise):
    """20 units, the null of the last ten times as wide: any p at most 0.05 in 5 % of families."""
    rng = np.random.default_rng(4)
    width = np.r_[np.ones(19), 10]
    rejected, found = 0, 0
    for _ in range(1000):
        values = width * rng.standard_normal((100, 20))
        rejected += max_statistic_p(values[0], values[1:], studentise).min() <= 0.05
        values[0, 0] += 4
        found += max_statistic_p(values[0], values[1:], studentise)[0] <= 0.05
    low, high = binom.ppf([0.001, 0.999], 1000, 0.05)
    assert low <= rejected <= high
    assert found > 700 if studentise else found < 100  # the widest null hides what the others hold


def test_max_statistic_refuses_bad_shapes():
    for observed, null in ((np.zeros(3), np.zeros((5, 4))), (np.zeros(3), np.zeros((0, 3))), (0.0, np.zeros((5, 1)))):
        with pytest.raises(ValueError, match=r"expected \(unit,\) and \(draw, unit\)"):
            max_statistic_p(observed, null)


# Clusters


def group(n_subjects=10, shape=(12, 15), seed=5, effect=1.5):
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((n_subjects, *shape))
    maps[(slice(None), *(slice(3, 6) for _ in shape))] += effect
    return maps


def flood(beyond, neighbours):
    """Connected components by search: label of every point, 0 outside."""
    label = np.zeros(len(beyond), int)
    for start in np.flatnonzero(beyond):
        if label[start]:
            continue
        label[start] = label.max() + 1
        front = [start]
        while front:
            one = front.pop()
            for other in np.flatnonzero(neighbours[one] & beyond & (label == 0)):
                label[other] = label[start]
                front.append(other)
    return label


def largest_masses(values, threshold, neighbours):
    label = flood(values > threshold, neighbours)
    return label, np.array([values[label == k].sum() for k in range(1, label.max() + 1)])


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_exact_test_of_all_sign_flips_in_plain_loops(alternative):
    """Eight subjects, a graph of 14 units in no order: all 256 flips, clusters by search."""
    rng = np.random.default_rng(6)
    maps = rng.standard_normal((8, 14))
    maps[:, [2, 9, 11]] += 1
    maps[:, [0, 4, 5]] -= 0.8
    neighbours = np.triu(rng.random((14, 14)) < 0.25, 1)
    threshold = t.isf(0.1 / (2 if alternative == "two-sided" else 1), 7)

    def masses(flipped):
        statistic = ttest_1samp(flipped, 0).statistic
        both = neighbours | neighbours.T
        up, heights = largest_masses(statistic, threshold, both)
        down, depths = largest_masses(-statistic, threshold, both)
        if alternative == "greater":
            return up, heights
        if alternative == "less":
            return down, depths
        return np.where(down > 0, down + up.max(), up), np.r_[heights, depths]

    signs = np.array(np.meshgrid(*[[1, -1]] * 8)).reshape(8, -1).T
    largest = np.array([max(masses(sign[:, None] * maps)[1], default=0) for sign in signs])
    label, observed = masses(maps)
    expected = np.ones(14)
    for k, mass in enumerate(observed, 1):
        expected[label == k] = np.mean(largest >= mass - 1e-9)
    assert len(observed) > 1
    for adjacency in (neighbours, coo_array(neighbours.T), (neighbours | neighbours.T) * 3 + np.eye(14)):
        p = cluster_p(maps, adjacency, threshold=0.1, alternative=alternative, n_permutations=1000)
        # MNE leaves out the flip of all subjects and counts none flipped twice when the test is one-sided.
        assert (p >= expected - 1e-12).all()
        assert (p <= expected + (0 if alternative == "two-sided" else 1 / 256) + 1e-12).all()


@pytest.mark.parametrize("threshold", [0.01, "tfce"])
def test_grids_equal_a_direct_call_of_mne(threshold):
    from mne.stats import permutation_cluster_1samp_test

    maps = group(9, (8, 7), effect=2)  # 512 flips: exact, without chance
    p = cluster_p(maps, threshold=threshold, n_permutations=512)
    given = {"start": 0, "step": 0.2} if threshold == "tfce" else t.isf(0.01, 8)
    _, clusters, values, _ = permutation_cluster_1samp_test(
        maps, given, n_permutations=512, tail=1, out_type="mask", verbose="ERROR"
    )
    expected = np.ones((8, 7))
    for members, value in zip(clusters, values, strict=True):
        expected[members.reshape(8, 7)] = value
    assert ((p >= expected - 1e-12) & (p <= expected + 1 / 512 + 1e-12)).all()  # rounding there decides on ties
    assert p.min() == pytest.approx(2 / 512)


@pytest.mark.parametrize("threshold", [0.02, "tfce"])
def test_less_is_greater_upside_down(threshold):
    maps = group(7, (6, 5), effect=2)
    up = cluster_p(maps, threshold=threshold, n_permutations=128)
    down = cluster_p(-maps, threshold=threshold, alternative="less", n_permutations=128)
    either = cluster_p(maps, threshold=threshold, alternative="two-sided", n_permutations=128)
    flipped = cluster_p(-maps, threshold=threshold, alternative="two-sided", n_permutations=128)
    np.testing.assert_array_equal(down, up)
    np.testing.assert_array_equal(flipped, either)
    assert up.min() <= 3 / 128
    assert either.min() <= 3 / 64


def test_sensors_over_time_equal_a_direct_call_of_mne():
    from mne.stats import spatio_temporal_cluster_1samp_test

    rng = np.random.default_rng(7)
    maps = rng.standard_normal((9, 6, 20))
    ring = (np.abs(np.subtract.outer(np.arange(6), np.arange(6))) % 4 == 1).astype(int)
    maps[:, 1:3, 5:9] += 1.2
    maps[:, 4, 6:9] += 1.2
    p = cluster_p(maps, ring, threshold=0.02, n_permutations=512)
    _, clusters, values, _ = spatio_temporal_cluster_1samp_test(
        maps.transpose(0, 2, 1),  # MNE's order: time before space
        t.isf(0.02, 8),
        n_permutations=512,
        tail=1,
        adjacency=coo_array(ring),
        out_type="indices",
        verbose="ERROR",
    )
    expected = np.ones((6, 20))
    for (times, units), value in zip(clusters, values, strict=True):
        expected[units, times] = value
    assert len(clusters) > 3
    assert ((p >= expected - 1e-12) & (p <= expected + 1 / 512 + 1e-12)).all()  # rounding there decides on ties


def test_volumes_agree_with_nilearn():
    """The same clusters as permuted_ols; masses there exceed the threshold, so p agree but for chance and that."""
    from nibabel import Nifti1Image
    from nilearn.maskers import NiftiMasker
    from nilearn.mass_univariate import permuted_ols

    rng = np.random.default_rng(8)
    inside = rng.random((6, 7, 5)) < 0.8
    maps = rng.standard_normal((12, 6, 7, 5))
    maps[:, 1:4, 2:5, 1:4] += 0.8
    image = Nifti1Image(inside.astype(np.float32), np.eye(4))
    masker = NiftiMasker(image).fit()
    maps = maps[:, inside]
    found = permuted_ols(
        np.ones((12, 1)), maps, model_intercept=False, n_perm=999, two_sided_test=False, random_state=0,
        masker=masker, threshold=0.01, n_jobs=1,
    )  # fmt: skip
    adjacency = grid_adjacency(masker.mask_img_)
    np.testing.assert_array_equal(adjacency.toarray(), grid_adjacency(inside).toarray())
    p = cluster_p(maps, adjacency, threshold=0.01, n_permutations=999)
    theirs = 10.0 ** -found["logp_max_mass"][0]
    in_cluster = found["size"][0] > 0
    np.testing.assert_array_equal(in_cluster, p < 1 - 1e-12)
    np.testing.assert_allclose(p[in_cluster], theirs[in_cluster], atol=0.05)
    assert p[in_cluster].min() <= 0.01


def test_voxels_that_share_a_face():
    from sklearn.feature_extraction.image import grid_to_graph

    mask = np.random.default_rng(9).random((4, 5, 3)) < 0.7
    expected = grid_to_graph(4, 5, 3, mask=mask).toarray() != 0
    np.testing.assert_array_equal(grid_adjacency(mask).toarray() != 0, expected)
    with pytest.raises(ValueError, match="is empty"):
        grid_adjacency(np.zeros((2, 2)))


def test_points_left_out_connect_nothing():
    maps = group(10, (9,), effect=5)
    maps[:, :] += 3
    maps[4, 4] = np.nan
    maps[:, 6] = 3
    with pytest.warns(UserWarning, match="2 of 9 points of maps are left out"):
        p = cluster_p(maps, n_permutations=100)
    np.testing.assert_array_equal(np.isnan(p), np.isin(np.arange(9), [4, 6]))
    apart = cluster_p(maps[:, [0, 1, 2, 3, 5, 7, 8]], _path([4, 1, 2]), n_permutations=100)
    np.testing.assert_array_equal(p[[0, 1, 2, 3, 5, 7, 8]], apart)
    with pytest.warns(UserWarning, match="9 of 9"):
        assert np.isnan(cluster_p(np.zeros((5, 9)))).all()


def _path(lengths):
    """Chains of neighbours, one after the other."""
    chain = np.repeat(np.arange(len(lengths)), lengths)
    step = np.abs(np.subtract.outer(np.arange(len(chain)), np.arange(len(chain)))) == 1
    return step & (chain[:, None] == chain)


def test_same_seed_same_p_and_no_words():
    maps = group(14)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = cluster_p(maps, n_permutations=50, seed=1)
        np.testing.assert_array_equal(first, cluster_p(maps, n_permutations=50, seed=1))
        quiet = cluster_p(np.random.default_rng(0).standard_normal((10, 5)), threshold=1e-9)
    assert first.min() == pytest.approx(1 / 51)
    np.testing.assert_array_equal(quiet, 1.0)


@pytest.mark.parametrize(("threshold", "families", "points"), [(0.05, 300, 40), ("tfce", 80, 15)])
def test_family_wise_error_of_clusters(threshold, families, points):
    """Smooth noise over points, 10 subjects, 59 flips: any p at most 0.05 in 5 % of families."""
    rng = np.random.default_rng(10)
    rejected = 0
    for _ in range(families):
        noise = rng.standard_normal((10, points + 4))
        maps = sum(noise[:, k : k + points] for k in range(5))
        rejected += cluster_p(maps, threshold=threshold, n_permutations=59, seed=rng).min() <= 0.05
    low, high = binom.ppf([0.001, 0.999], families, 0.05)
    assert low <= rejected <= high


def test_cluster_p_refuses_bad_input():
    maps = group()
    with pytest.raises(ValueError, match="at least two subjects"):
        cluster_p(maps[:1])
    with pytest.raises(ValueError, match="alternative='both' is unknown"):
        cluster_p(maps, alternative="both")
    with pytest.raises(ValueError, match=r"adjacency has shape \(15, 15\); expected \(unit, unit\) \(12, 12\)"):
        cluster_p(maps, np.eye(15))
    for threshold in (2.3, 0, "cluster"):
        with pytest.raises(ValueError, match="expected a p value between 0 and 1"):
            cluster_p(maps, threshold=threshold)
