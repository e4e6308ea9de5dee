"""Simulated experiments have the geometry and noise that they say, and power moves as it must."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist, squareform

from neuralign.align.power import _measured, _patterns, rsa_power
from neuralign.align.rdm_models import WeightedRDM
from neuralign.datasets.rdms import RDMs

N = 24
IDS = [f"s{k}" for k in range(N)]


def models(seed=0, n_models=3):
    """The true geometry, one near to it and one far from it."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(N, 5))
    near = np.hstack([true[:, :4], rng.normal(size=(N, 1))])
    far = rng.normal(size=(N, 5))
    vectors = [pdist(X, "sqeuclidean") for X in (true, near, far)][:n_models]
    return RDMs(np.array(vectors), IDS, pd.DataFrame({"label": ["true", "near", "far"][:n_models]}))


def power(table, test, model):
    return table.set_index(["test", "model"]).loc[(test, model), "power"]


def test_patterns_have_the_true_geometry():
    vector = models().vectors[0]
    patterns = _patterns(vector)
    found = pdist(patterns, "sqeuclidean")
    np.testing.assert_allclose(found / found.sum(), vector / vector.sum(), atol=1e-12)
    assert (patterns**2).sum() == pytest.approx(N)
    assert (np.linalg.svd(patterns, compute_uv=False) > 1e-6).sum() == 5


def test_an_rdm_without_patterns_gets_a_constant():
    rng = np.random.default_rng(1)
    vector = rng.uniform(size=N * (N - 1) // 2)
    gram = -0.5 * (np.eye(N) - 1 / N) @ squareform(vector) @ (np.eye(N) - 1 / N)
    lacking = -np.linalg.eigvalsh(gram)[0]
    assert lacking > 0.1
    found = pdist(_patterns(vector), "sqeuclidean")
    shifted = vector + 2 * lacking
    np.testing.assert_allclose(found / found.sum(), shifted / shifted.sum(), atol=1e-10)
    assert np.corrcoef(found, vector)[0, 1] == pytest.approx(1)


def test_measured_rdms_are_unbiased():
    """Mean over many subjects, within four standard errors of the true RDM, noise three times the signal."""
    patterns = _patterns(models().vectors[0])[:10]
    found = _measured(patterns, 400, 3.0, 30, np.random.default_rng(0), IDS[:10])
    error = found.vectors.std(0, ddof=1) / 20
    assert (np.abs(found.vectors.mean(0) - pdist(patterns, "sqeuclidean")) < 4 * error).all()
    assert (found.vectors < 0).any()
    assert found.table["subject"].nunique() == 400
    quiet = _measured(patterns, 1, 0.0, 200_000, np.random.default_rng(0), IDS[:10])
    np.testing.assert_allclose(quiet.vectors[0], pdist(patterns, "sqeuclidean"), rtol=0.05)


def test_power_grows_with_the_experiment_and_falls_with_noise():
    options = {"n_simulations": 40, "method": "pearson", "n_channels": 20, "bootstrap": 60}
    table = rsa_power(models(), "true", [4, 12], [12, 24], 4.0, **options)
    assert list(table.columns) == ["n_subjects", "n_stimuli", "test", "model", "power", "se", "score"]
    assert len(table) == 4 * 11
    near = table[(table["test"] == "below-best") & (table["model"] == "near")]
    by_size = near.set_index(["n_subjects", "n_stimuli"])["power"]
    assert by_size[4, 12] < by_size[12, 24]
    quiet = rsa_power(models(), "true", 12, 24, 0.5, **options)
    assert power(quiet, "below-best", "near") > by_size[12, 24]
    assert power(quiet, "above-zero", "true") == 1
    assert power(quiet, "highest", "true") == 1
    assert power(quiet, "below-best", "far") >= power(quiet, "below-best", "near")
    assert power(quiet, "below-ceiling", "far") == 1
    assert "true" not in set(quiet.loc[quiet["test"] == "below-best", "model"])
    p = quiet["power"]
    np.testing.assert_allclose(quiet["se"], np.sqrt(p * (1 - p) / 40))


def test_without_a_difference_power_is_the_level():
    """Two models that the true geometry is equally far from, and a brain without geometry for the test against zero."""
    rng = np.random.default_rng(3)
    true = rng.normal(size=(N, 8))
    first, second = np.hstack([true[:, :4], true[:, :4]]), np.hstack([true[:, 4:], true[:, 4:]])
    equal = RDMs(np.array([pdist(X, "sqeuclidean") for X in (first, second)]), IDS)
    unrelated = RDMs(np.ones((1, N * (N - 1) // 2)), IDS)
    options = {"n_simulations": 200, "method": "pearson", "n_channels": 30, "bootstrap": 60, "over": "subjects"}
    none = rsa_power(equal, unrelated, 10, N, 1.0, **options)
    # 10 of 200 expected for each; a fair test exceeds 22 about once in 2,000 times.
    assert (none.loc[none["test"] == "above-zero", "power"] <= 0.11).all()
    assert none.loc[none["test"] == "below-best", "power"].item() <= 0.11


def test_sizes_are_simulated_on_their_own_and_seeds_repeat():
    options = {"n_simulations": 3, "method": "pearson", "n_channels": 10, "bootstrap": 20}
    alone = rsa_power(models(), 0, 4, 12, 1.0, seed=5, **options)
    beside = rsa_power(models(), 0, [4, 6], 12, 1.0, seed=5, **options)
    pd.testing.assert_frame_equal(alone, beside[beside["n_subjects"] == 4].reset_index(drop=True))
    pd.testing.assert_frame_equal(alone, rsa_power(models(), "true", 4, 12, 1.0, seed=5, **options))
    pd.testing.assert_frame_equal(alone, rsa_power(models(), models()[:1], 4, 12, 1.0, seed=5, **options))
    assert not alone["score"].equals(rsa_power(models(), 0, 4, 12, 1.0, seed=6, **options)["score"])
    arrays = rsa_power(models().vectors, 0, 4, 12, 1.0, seed=5, **options)
    np.testing.assert_allclose(arrays["power"], alone["power"])


def test_no_power_against_zero_where_zero_is_not_chance():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = rsa_power(models(), 0, 4, 12, 1.0, 3, "cosine", n_channels=10, bootstrap=20)
    above = table["test"] == "above-zero"
    assert table.loc[above, ["power", "se"]].isna().all(axis=None) and above.sum() == 3
    assert table.loc[~above, ["power", "se", "score"]].notna().all(axis=None)


def test_experiments_without_a_score_are_left_out_of_rates():
    """A category model has no value in draws that miss its category; the others keep all experiments."""
    true, _, far = models().vectors
    category = pdist((np.arange(N) < 3)[:, None].astype(float))
    stack = RDMs(np.stack([true, category, far]), IDS, pd.DataFrame({"label": ["true", "category", "far"]}))
    options = {"noise": 0.5, "n_simulations": 12, "method": "pearson", "over": "subjects", "bootstrap": 30}
    with pytest.warns(UserWarning) as caught:
        table = rsa_power(stack, "true", 6, 6, **options)
    assert len(caught) == 1 and caught[0].filename == __file__
    said = re.match(r"of 12 experiments (\d+) lack a score or p of some model", str(caught[0].message))
    assert f"{said[1]} warned, the first: 6 of 18 comparisons are NaN" in str(caught[0].message)
    known = 12 - int(said[1])
    assert 0 < known < 12
    rows = table.set_index(["test", "model"])
    assert rows.loc[("highest", "true"), "power"] == 1 and rows.loc[("highest", "category"), "power"] == 0
    for test in ("above-zero", "below-best", "below-ceiling"):
        found = rows.loc[(test, "category")]
        assert found["power"] * known == pytest.approx(round(found["power"] * known))
        assert found["se"] == pytest.approx(np.sqrt(found["power"] * (1 - found["power"]) / known))
    assert rows.loc[("below-ceiling", "category"), "power"] == 1
    assert rows.loc[("below-best", "category"), "power"] == 1
    assert rows["score"].notna().all()
    with pytest.warns(UserWarning, match="of 12 experiments 12 lack a score"):
        empty = rsa_power(RDMs(np.stack([true, np.ones_like(true)]), IDS), stack[0], 6, 12, **options)
    rows = empty.set_index(["test", "model"])
    assert rows.xs("model 2", level="model")[["power", "se", "score"]].isna().all(axis=None)
    assert rows.loc[("highest", "model 1"), "power"] == 1


def test_tests_without_resamples_have_no_power():
    table = rsa_power(models(), 0, 4, 12, 1.0, 3, "pearson", over="none", n_channels=10)
    assert table.loc[table["test"] != "highest", "power"].isna().all()
    assert table.loc[table["test"] == "highest", "power"].notna().all()


def test_models_with_parameters():
    stack = models()
    flexible = WeightedRDM(stack, name="weighted")
    table = rsa_power([flexible, stack[2]], stack[0], 4, 18, 0.5, 3, "pearson", n_channels=30, bootstrap=10)
    assert set(table["model"]) == {"weighted", "far"}
    assert power(table, "highest", "weighted") == 1


def test_bad_input():
    stack = models()
    with pytest.raises(ValueError, match="true='treu' is unknown; did you mean 'true'"):
        rsa_power(stack, "treu", 5, 12, 1.0)
    with pytest.raises(ValueError, match="true=3; expected 0 to 2, the position of a model"):
        rsa_power(stack, 3, 5, 12, 1.0)
    with pytest.raises(ValueError, match="n_stimuli=25; expected 3 to 24, the stimuli of the models"):
        rsa_power(stack, 0, 5, 25, 1.0)
    with pytest.raises(ValueError, match="noise=-1; expected 0 or more"):
        rsa_power(stack, 0, 5, 12, -1)
    with pytest.raises(ValueError, match="alpha=5; expected a level"):
        rsa_power(stack, 0, 5, 12, 1.0, alpha=5)
    with pytest.raises(ValueError, match="n_simulations=0"):
        rsa_power(stack, 0, 5, 12, 1.0, 0)
    with pytest.raises(ValueError, match=r"true has shape \(2, 276\); expected one RDM over the 24 stimuli"):
        rsa_power(stack, stack[:2], 5, 12, 1.0)
    gaps = stack.vectors[:1].copy()
    gaps[0, 3] = np.nan
    with pytest.raises(ValueError, match="true holds 1 unknown pairs"):
        rsa_power(stack, gaps, 5, 12, 1.0)
    with pytest.raises(ValueError, match="true is constant at 0"):
        rsa_power(stack, np.zeros((1, 276)), 5, 12, 1.0)
    with pytest.raises(ValueError, match="true=0 names one of several RDMs, but models are a list"):
        rsa_power([stack], 0, 5, 12, 1.0)
    with pytest.raises(ValueError, match="models hold no stimulus ids"):
        rsa_power([stack.vectors], stack[:1], 5, 12, 1.0)
    with pytest.raises(ValueError, match="resamples subjects, but brain holds 1"):
        rsa_power(stack, 0, 1, 12, 1.0)
