"""Regions of units, the rules for units in several, and heads in closed form."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge as PlainRidge

from neuralign.encoders import RidgeCV
from neuralign.encoders.routing.heads import closed_form_heads, head_alphas
from neuralign.encoders.routing.regions import canonical_order, own_patterns, patterns, region_mask


def test_a_column_of_labels_names_the_regions_in_the_order_they_appear():
    units = pd.DataFrame({"area": ["V4", "IT", None, "V4", "", np.nan, "V1"]})
    names, mask = region_mask("area", units, 7)
    assert names == ("V4", "IT", "V1", "none")
    np.testing.assert_array_equal(mask.argmax(0), [0, 1, 3, 0, 3, 3, 2])
    assert (mask.sum(0) == 1).all()
    again = region_mask(units["area"].to_numpy(), None, 7)
    assert again[0] == names and np.array_equal(again[1], mask)


def test_a_column_without_a_table_makes_one_region():
    names, mask = region_mask("region", None, 3)
    assert names == ("all",) and mask.all() and mask.shape == (1, 3)


def test_a_mask_keeps_its_names_and_gathers_the_rest():
    mask = pd.DataFrame([[1, 1, 0, 0], [0, 1, 1, 0]], index=["FFA", "EBA"]).astype(bool)
    names, found = region_mask(mask, None, 4)
    assert names == ("FFA", "EBA", "none")
    np.testing.assert_array_equal(found, [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
    assert region_mask(mask.to_numpy()[:, :3], None, 3)[0] == ("0", "1")


@pytest.mark.parametrize(
    "regions, units, words",
    [
        ("are", pd.DataFrame({"area": ["a", "b", "c"]}), ["'are'", "'area'", "one label"]),
        (["a", "b"], None, [r"shape \(2,\)", r"\(3,\)"]),
        (np.ones((2, 4), bool), None, [r"shape \(2, 4\)", r"\(region, 3\)"]),
        (np.full((2, 3), 0.5), None, ["float64", "bool"]),
        (np.array([[1, 1, 1], [0, 0, 0]], bool), None, ["1 of 2 regions have no units: 1", "leave"]),
        (pd.DataFrame(np.eye(3, dtype=bool), index=["a", "b", "a"]), None, ["'a'", "more than once"]),
    ],
)
def test_regions_that_do_not_fit_are_refused(regions, units, words):
    for word in words:
        with pytest.raises(ValueError, match=word):
            region_mask(regions, units, 3)


MASK = np.array([[1, 0, 1, 0, 1], [0, 1, 1, 0, 0], [0, 0, 1, 1, 1]], bool)


@pytest.mark.parametrize(
    "overlap, weights, counts",
    [
        ("mean", [[1, 0, 0], [0, 1, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0, 1], [0.5, 0, 0.5]], [1, 1, 1, 1, 1]),
        ("sum", [[1, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 1]], [1, 1, 3, 1, 2]),
        ("first", [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]], [1, 1, 1, 1, 1]),
    ],
)
def test_the_rule_for_units_in_several_regions(overlap, weights, counts):
    found = patterns(MASK, overlap)
    which = np.repeat(np.arange(len(found.sizes)), found.sizes)
    for position, unit in enumerate(found.order):
        np.testing.assert_allclose(found.rows(0, len(found.sizes))[which[position]], weights[unit], rtol=1e-6)
        assert found.counts[which[position]] == counts[unit]
    assert sorted(np.concatenate(found.members)) == list(range(5))
    assert len(found.sizes) == len(np.unique(np.asarray(weights), axis=0))


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="'mean'"):
        patterns(MASK, "means")


def test_units_without_overlap_need_no_mixing():
    assert patterns(np.eye(3, dtype=bool)[:, [1, 0, 2, 2]], "mean").combine is None
    np.testing.assert_array_equal(own_patterns(4).rows(1, 3), np.eye(4)[1:3])


def test_the_canonical_order_follows_the_members_and_not_the_rows():
    order = np.array([2, 0, 1])
    np.testing.assert_array_equal(MASK[order][canonical_order(MASK[order])], MASK[canonical_order(MASK)])


def heads_data(n=90, f=12, seed=0):
    rng = np.random.default_rng(seed)
    F = rng.standard_normal((2, n, f)) * rng.uniform(0.1, 5, f)
    members = [np.array([0, 2, 3]), np.array([1, 4])]
    Y = np.empty((n, 5))
    for p, units in enumerate(members):
        Y[:, units] = F[p] @ rng.standard_normal((f, len(units))) + 8 * rng.standard_normal((n, len(units))) + 3
    return F.astype(np.float32), members, Y


def test_closed_form_heads_equal_plain_ridge_at_the_penalty_of_the_validation_rows():
    F, members, Y = heads_data()
    known = np.ones(Y.shape, bool)
    known[:9, 3] = False  # of a training row and further
    known[80:84, 3] = False
    alphas = np.array([1.0, 30.0, 1000.0])
    cv = (np.arange(70), np.arange(70, 90))
    heads = closed_form_heads(iter(enumerate(F)), 12, members, Y, known, cv, alphas)
    for p, units in enumerate(members):
        for unit in units:
            rows = known[:, unit]
            train, check = rows & (np.arange(90) < 70), rows & (np.arange(90) >= 70)
            r = []
            for alpha in alphas:
                mean, sd = F[p][train].mean(0), F[p][train].std(0)
                plain = PlainRidge(alpha=alpha).fit((F[p][train] - mean) / sd, Y[train, unit])
                r.append(np.corrcoef(plain.predict((F[p][check] - mean) / sd), Y[check, unit])[0, 1])
            assert heads.alpha[unit] == alphas[np.argmax(r)]
            assert heads.r[unit] == pytest.approx(max(r), abs=1e-5)
            mean, sd = F[p][rows].mean(0), F[p][rows].std(0)
            plain = PlainRidge(alpha=heads.alpha[unit]).fit((F[p][rows] - mean) / sd, Y[rows, unit])
            wanted = plain.predict((F[p] - mean) / sd)
            np.testing.assert_allclose(F[p] @ heads.weight[unit] + heads.bias[unit], wanted, rtol=1e-3, atol=1e-3)
    assert len(set(heads.alpha)) > 1


def test_units_with_too_few_known_rows_get_no_head_and_leave_the_others_alone():
    F, members, Y = heads_data()
    known = np.ones(Y.shape, bool)
    cv = (np.arange(70), np.arange(70, 90))
    alphas = head_alphas(None, "token", 1)
    whole = closed_form_heads(iter(enumerate(F)), 12, members, Y, known, cv, alphas)
    known[72:, 2] = False
    found = closed_form_heads(iter(enumerate(F)), 12, members, Y, known, cv, alphas)
    assert np.isnan(found.alpha[2]) and np.isnan(found.r[2])
    np.testing.assert_allclose(found.weight[[0, 1, 3, 4]], whole.weight[[0, 1, 3, 4]], rtol=1e-6)


def test_folds_take_the_place_of_rows():
    F, members, Y = heads_data()
    alphas = head_alphas([1, 100.0], "pooled", 4)
    np.testing.assert_array_equal(alphas, [4, 400])
    heads = closed_form_heads(iter(enumerate(F)), 12, members, Y, np.ones(Y.shape, bool), 5, alphas)
    wanted = RidgeCV(alphas, standardise=True).fit(F[0], Y[:, members[0]])
    np.testing.assert_allclose(heads.alpha[members[0]], wanted.alpha_)
    np.testing.assert_allclose(heads.weight[members[0]], wanted.coef_.T, rtol=1e-4, atol=1e-5)


def test_unknown_features_of_heads_are_refused():
    with pytest.raises(ValueError, match="pooled"):
        head_alphas(None, "tokens", 1)


def test_mixing_is_a_tensor_for_modules():
    assert torch.is_tensor(patterns(MASK, "mean").mixing())
