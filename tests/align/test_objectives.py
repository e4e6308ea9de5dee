"""Objectives against the same computed by hand, one stimulus at a time."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from neuralign.align.objectives import OBJECTIVES, objective


def responses(n=7, units=6, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, units)))


def slow(name, r, sign=1, mean=0.0, std=1.0, **options):
    """Value for the responses (unit,) to one stimulus."""
    r = (r - mean) / std
    if name == "unit":
        value = r[options["unit"]]
    elif name == "roi-mean":
        value = sum(r[u] for u in options["units"]) / len(options["units"])
    elif name == "roi-contrast":
        value = np.mean([r[u] for u in options["units"]]) - np.mean([r[u] for u in options["against"]])
    elif name == "cosine-to-target":
        value = np.dot(r, options["target"]) / np.sqrt(np.dot(r, r) * np.dot(options["target"], options["target"]))
    else:
        labels, tau = np.asarray(options["labels"]), options.get("temperature", 1.0)
        means = {c: r[labels == c].mean() / tau for c in set(labels.tolist())}
        value = means[options["cluster"]] - logsumexp(list(means.values())) + np.log(len(means))
    return sign * value


OPTIONS = {
    "unit": {"unit": 4},
    "roi-mean": {"units": [0, 2, 5]},
    "roi-contrast": {"units": [0, 1], "against": [3]},
    "cosine-to-target": {"target": np.arange(6.0) - 2},
    "discriminative": {"labels": [0, 3, 3, 0, 7, 7], "cluster": 3, "temperature": 0.4},
}


def test_every_objective_is_tested():
    assert set(OPTIONS) == set(OBJECTIVES)
    for name, card in OBJECTIVES.items():
        assert card.name == name and set(card.needs) <= set(OPTIONS[name]) and card.formula
        assert f"``{name}``" in objective.__doc__


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("standard", [{}, {"sign": -1, "mean": np.arange(6) / 3, "std": np.arange(1, 7) / 2}])
def test_objectives_by_hand_and_their_gradients(name, standard):
    r = responses().requires_grad_()
    value = objective(name, **standard, **OPTIONS[name])
    found = value(r)
    expected = [slow(name, row.detach().numpy(), **standard, **OPTIONS[name]) for row in r]
    assert np.allclose(found.detach(), expected, atol=1e-12)
    assert torch.autograd.gradcheck(value, r)


def test_masks_name_units_as_numbers_do():
    r = responses()
    mask = np.array([True, False, True, False, False, True])
    assert torch.equal(objective("roi-mean", units=mask)(r), objective("roi-mean", units=[0, 2, 5])(r))


@pytest.mark.parametrize("name", ["roi-mean", "roi-contrast", "cosine-to-target", "discriminative"])
@pytest.mark.parametrize("by", ["responses", "std"])
def test_units_left_out_count_for_nothing(name, by):
    options = {
        "roi-mean": {"units": [0, 2, 5]},
        "roi-contrast": {"units": [0, 2], "against": [1, 5]},
        "cosine-to-target": {"target": np.arange(6.0) - 2},
        "discriminative": {"labels": [0, 0, 1, 1, 1, 0], "cluster": 0},
    }[name]
    without = {
        "roi-mean": {"units": [0, 4]},
        "roi-contrast": {"units": [0], "against": [1, 4]},
        "cosine-to-target": {"target": np.arange(6.0)[[0, 1, 3, 4, 5]] - 2},
        "discriminative": {"labels": [0, 0, 1, 1, 0], "cluster": 0},
    }[name]
    r = responses()
    kept = r[:, [0, 1, 3, 4, 5]]
    std = np.ones(6)
    r[:, 2] = r[:, 2] if by == "std" else torch.nan
    std[2] = np.nan if by == "std" else 1
    r.requires_grad_()
    found = objective(name, **options, std=std)(r)
    assert torch.allclose(found, objective(name, **without)(kept))
    (gradient,) = torch.autograd.grad(found.sum(), r)
    assert gradient.isfinite().all() and (gradient[:, 2] == 0).all()


def test_a_cluster_that_stands_alone_reaches_log_k():
    r = torch.tensor([[30.0, -30.0, -30.0], [1.0, 1.0, 1.0]])
    found = objective("discriminative", labels=[0, 1, 2], cluster=0)(r)
    assert torch.allclose(found, torch.tensor([np.log(3), 0.0], dtype=torch.float32), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("roi", {}, "name='roi' is unknown; did you mean 'roi-mean'"),
        ("unit", {"units": [1]}, "option='units' is unknown; did you mean 'unit'"),
        ("roi-contrast", {"units": [1]}, "'roi-contrast' needs against"),
        ("unit", {"unit": 0, "sign": 0}, "sign=0 gives the direction"),
        ("roi-mean", {"units": []}, "names no unit"),
        ("roi-mean", {"units": [False, False]}, "names no unit"),
        ("roi-mean", {"units": [0.5]}, "names no unit"),
        ("unit", {"unit": 0, "std": [1.0, 0.0]}, "std is not above 0 in 1 units"),
        ("discriminative", {"labels": [0], "cluster": 0, "temperature": 0}, "temperature=0 must be above 0"),
    ],
)
def test_wrong_objectives_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        objective(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unit", {"unit": 6}, "unit names unit 6, the responses have 6 units"),
        ("unit", {"unit": 0, "mean": [0.0]}, r"mean has shape \(1,\), the responses have 6 units"),
        ("cosine-to-target", {"target": [1.0, 2.0]}, "target has shape"),
        ("discriminative", {"labels": [0, 1], "cluster": 0}, "labels have shape"),
        ("discriminative", {"labels": [0, 1] * 3, "cluster": 2}, "cluster=2 is unknown"),
    ],
)
def test_objectives_that_do_not_fit_the_responses_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        objective(name, **options)(responses())
