"""The geo-topological transform against its definition written out, and against every known fault of public code."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import rankdata

from neuralign.align.topology import rgtm
from neuralign.align.topology.transforms import average_ranks, place
from neuralign.datasets.rdms import RDMs

CELLS = [(0.0, 1.0), (0.2, 0.8), (0.4, 0.6), (0.0, 0.075), (0.05, 0.3), (0.6, 1.0), (0.123, 0.777)]


def vectors(n_rdms=3, n_stimuli=20, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([pdist(rng.normal(size=(n_stimuli, 6))) for _ in range(n_rdms)])


def written_out(d, lower, upper):
    """The transform of one RDM pair by pair, from the ranks of the paper's code."""
    ranks = rankdata(d)
    r = (ranks - ranks.min()) / (ranks.max() - ranks.min())
    low, high = np.quantile(r, lower), np.quantile(r, upper)
    return np.array([0.0 if x < low else 1.0 if x > high else (x - low) / (high - low) for x in r])


@pytest.mark.parametrize("lower, upper", CELLS)
@pytest.mark.parametrize("ties", [False, True])
def test_equals_its_definition(lower, upper, ties):
    stack = np.round(vectors(), 1) if ties else vectors()
    expected = np.stack([written_out(d, lower, upper) for d in stack])
    np.testing.assert_allclose(rgtm(stack, lower, upper), expected, atol=1e-12)


@pytest.mark.parametrize("lower, upper", CELLS)
def test_without_ties_quantiles_of_ranks_are_ranks(lower, upper):
    d = vectors(1)[0]
    r = np.argsort(np.argsort(d)) / (len(d) - 1)
    np.testing.assert_allclose(rgtm(d, lower, upper), np.clip((r - lower) / (upper - lower), 0, 1), atol=1e-12)
    # What is summed depends on the thresholds alone.
    assert rgtm(d, lower, upper).sum() == pytest.approx(rgtm(vectors(1, seed=1)[0], lower, upper).sum())


def test_all_thresholds_out_is_the_rank_rdm():
    d = vectors(1)[0]
    ranks = rankdata(d)
    np.testing.assert_allclose(rgtm(d), (ranks - 1) / (len(d) - 1), atol=1e-15)


@pytest.mark.parametrize("lower, upper", CELLS)
def test_value_quantiles(lower, upper):
    for d in vectors():
        low, high = np.quantile(d, [lower, upper])
        np.testing.assert_allclose(
            rgtm(d, lower, upper, "value-quantile"), np.clip((d - low) / (high - low), 0, 1), atol=1e-12
        )


def test_absolute_thresholds():
    d = np.array([[0.5, 1.0, 1.5, 2.0, 2.5, 9.0]])
    np.testing.assert_allclose(rgtm(d, 1, 2, "absolute"), [[0, 0, 0.5, 1, 1, 1]])
    np.testing.assert_array_equal(rgtm(d, 1.5, 1.5, "absolute"), [[0, 0, 0, 1, 1, 1]])


@pytest.mark.parametrize("threshold", ["rank-quantile", "value-quantile"])
def test_step_where_thresholds_meet(threshold):
    d = vectors(1, 14)[0]  # 91 pairs: 0.7 * 90 is below 63 in floating point
    for tenths in range(11):
        step = rgtm(d, tenths / 10, tenths / 10, threshold)
        assert set(step) <= {0.0, 1.0}
        assert (step == 0).sum() == 9 * tenths + 1  # pairs at the threshold are near
        np.testing.assert_array_equal(step == 0, rankdata(d) <= 9 * tenths + 1)


def test_thresholds_that_ties_bring_together_are_a_step():
    d = np.array([1.0, 1, 1, 1, 1, 1, 1, 1, 2, 3])  # quantiles 0.2 and 0.6 are both 1
    for threshold in ("rank-quantile", "value-quantile"):
        np.testing.assert_array_equal(rgtm(d, 0.2, 0.6, threshold), [0] * 8 + [1, 1])


def test_sigmoid():
    d = vectors(1)[0]
    r = (rankdata(d) - 1) / (len(d) - 1)
    np.testing.assert_allclose(rgtm(d, shape="sigmoid"), 1 / (1 + np.exp(-10 * (r - 0.5))))
    np.testing.assert_allclose(rgtm(d, shape="sigmoid", slope=3, centre=0.2), 1 / (1 + np.exp(-3 * (r - 0.2))))
    scaled = (d - d.min()) / (d.max() - d.min())
    np.testing.assert_allclose(
        rgtm(d, threshold="value-quantile", shape="sigmoid"), 1 / (1 + np.exp(-10 * (scaled - 0.5)))
    )
    np.testing.assert_allclose(
        rgtm(d, threshold="absolute", shape="sigmoid", slope=1, centre=2), 1 / (1 + np.exp(-(d - 2)))
    )


@pytest.mark.parametrize("threshold", ["rank-quantile", "value-quantile"])
def test_each_rdm_on_its_own_and_the_input_untouched(threshold):
    small, large = vectors(1)[0], 10 * vectors(1, seed=1)[0]
    before = np.stack([small, large])
    stack = before.copy()
    together = rgtm(stack, 0.2, 0.8, threshold)
    np.testing.assert_array_equal(together[0], rgtm(small, 0.2, 0.8, threshold))
    np.testing.assert_array_equal(together[1], rgtm(large, 0.2, 0.8, threshold))
    np.testing.assert_array_equal(stack, before)
    assert not np.shares_memory(together, stack)


def test_order_is_kept_with_negative_dissimilarities():
    d = np.random.default_rng(0).normal(0.5, 1, 190)  # crossnobis goes below 0
    for threshold, lower, upper in (
        ("absolute", -0.5, 0.5),
        ("value-quantile", 0.1, 0.5),
        ("rank-quantile", 0.1, 0.5),
        ("absolute", 0.0, 1.0),
    ):
        values = rgtm(d, lower, upper, threshold)
        assert (np.diff(values[np.argsort(d)]) >= 0).all()
        assert (values[d > (np.quantile(d, upper) if threshold != "absolute" else upper)] == 1).all()
        assert values.min() == 0


def test_unknown_pairs_take_no_part():
    d = vectors(1)[0]
    holes = d.copy()
    holes[[3, 50, 189]] = np.nan
    for threshold in ("rank-quantile", "value-quantile"):
        values = rgtm(holes, 0.2, 0.8, threshold)
        assert np.isnan(values[[3, 50, 189]]).all()
        known = ~np.isnan(holes)
        low, high = np.quantile(holes[known], [0.2, 0.8])
        expected = written_out(holes[known], 0.2, 0.8)
        if threshold == "value-quantile":
            expected = np.clip((holes[known] - low) / (high - low), 0, 1)
        np.testing.assert_allclose(values[known], expected, atol=1e-12)
    step = rgtm(holes, 0.5, 0.5)
    assert np.isnan(step[[3, 50, 189]]).all() and (step[known] == 0).sum() == 94


def test_constant_rdms_are_counted_not_spread():
    stack = vectors()
    stack[1] = 3.0
    for threshold in ("rank-quantile", "value-quantile"):
        with pytest.warns(UserWarning, match="1 of 3 RDMs are NaN") as caught:
            values = rgtm(stack, 0.2, 0.8, threshold)
        assert len(caught) == 1
        assert np.isnan(values[1]).all() and not np.isnan(values[[0, 2]]).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (rgtm(stack, 0, 6, "absolute")[1] == 0.5).all()
        unknown = stack.copy()
        unknown[1] = np.nan  # came in unknown: nothing was lost
        assert np.isnan(rgtm(unknown)[1]).all()


def test_type_and_labels_are_kept():
    ids = [f"s{k}" for k in range(20)]
    table = pd.DataFrame({"region": ["V1", "V4", "IT"]})
    rdms = RDMs(vectors(), ids, table, "correlation")
    out = rgtm(rdms, 0.2, 0.8)
    assert isinstance(out, RDMs) and out.stimulus_ids == ids and out.method == "correlation-rgtm(0.2,0.8)"
    pd.testing.assert_frame_equal(out.table, table)
    np.testing.assert_array_equal(out.vectors, rgtm(vectors(), 0.2, 0.8))
    assert rgtm(RDMs(vectors(), ids), 1, 2, "absolute").method == "rgtm(1,2)-absolute"
    assert rgtm(vectors(1)[0]).shape == (190,) and rgtm(vectors(1)).shape == (1, 190)
    single = rgtm(RDMs(vectors().astype(np.float32), ids))
    np.testing.assert_allclose(single.vectors, rgtm(vectors()), atol=1e-12)  # order is all it uses


def test_five_stimuli():
    values = rgtm(vectors(2, 5), 0.2, 0.8)
    assert np.isfinite(values).all() and values.min() == 0 and values.max() == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lower": 0.8, "upper": 0.2}, "above upper"),
        ({"lower": -0.1}, "quantiles"),
        ({"upper": 1.5}, "quantiles of the pairs and lie in"),
        ({"lower": np.nan}, "finite"),
        ({"upper": np.inf, "threshold": "absolute"}, "finite"),
        ({"threshold": "rank_quantile"}, "did you mean 'rank-quantile'"),
        ({"shape": "linaer"}, "did you mean 'linear'"),
        ({"lower": 0.2, "upper": 0.8, "shape": "sigmoid"}, "no meaning"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        rgtm(vectors(), **options)


def test_ranks_and_quantiles_with_multiplicities_are_those_of_repeated_pairs():
    rng = np.random.default_rng(0)
    stack = np.round(vectors(4), 1)  # with ties
    stack[2, 5] = np.nan
    counts = rng.integers(1, 5, stack.shape[1])
    repeated = np.repeat(stack, counts, axis=1)
    back = np.concatenate([[0], np.cumsum(counts)[:-1]])
    np.testing.assert_array_equal(average_ranks(stack, counts), rankdata(repeated, axis=1, nan_policy="omit")[:, back])
    for threshold in ("rank-quantile", "value-quantile"):
        weighted, explicit = place(stack, threshold, counts), place(repeated, threshold)
        np.testing.assert_array_equal(weighted.values, explicit.values[:, back])
        for at in rng.uniform(size=10):
            expected = [np.nanquantile(values, at) for values in explicit.values]
            np.testing.assert_allclose(weighted.cut(at)[:, 0], expected, rtol=1e-13)
            np.testing.assert_allclose(explicit.cut(at)[:, 0], expected, rtol=1e-13)


def test_ranks_put_infinity_last():
    values = np.array([[2.0, np.inf, np.nan, 1.0, np.inf, 2.0]])
    np.testing.assert_array_equal(average_ranks(values), [[2.5, 4.5, np.nan, 1, 4.5, 2.5]])
