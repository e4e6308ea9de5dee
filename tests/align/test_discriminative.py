"""Planted clusters of units are found, and what is returned is what the formulas give for it."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from neuralign.align.discriminative import most_discriminative
from neuralign.align.objectives import objective

SIZE = 8


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spot(centre, width):
    y, x = np.mgrid[:SIZE, :SIZE]
    field = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2)).ravel()
    return field / np.linalg.norm(field)


def on_and_off(n=42, seed=0):
    """Units that see a spot lighter or darker than its surround, each with its own gain and a little noise."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(n) % 2)
    W = (spot((3.5, 3.5), 1.2) - spot((3.5, 3.5), 4.0))[:, None] + 0.005 * rng.standard_normal((SIZE * SIZE, n))
    W *= np.where(truth, 1.0, -1.0) * rng.uniform(0.7, 1.4, n)
    weight = torch.from_numpy(W)

    def respond(images):
        return torch.nn.functional.softplus(3 * images.flatten(1) @ weight)

    return respond, truth


def start(n, generator):
    return torch.randn(n, SIZE, SIZE, generator=generator, dtype=torch.float64)


def found_in(respond, clusters, seed, **options):
    return most_discriminative(respond, clusters, lambda p: p, start, seed=seed, steps=60, norm=3.0, **options)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_five_clusters_of_on_and_off_units_become_two(seed):
    respond, truth = on_and_off(seed=seed)
    found = found_in(respond, 5, seed)
    assert adjusted_rand_score(truth, found.labels) == 1
    assert found.stimuli.shape == (2, SIZE, SIZE) and found.objective.shape == (2,)
    assert found.history["clusters"].iloc[0] == 5 and found.history["clusters"].iloc[-1] == 2
    assert found.history["moved"].iloc[-1] == 0
    light = found.images[found.labels[truth == 1][0]]
    assert light[3:5, 3:5].mean() > 5 * np.abs(light).mean() / 3, "the on cluster is driven by a light spot"


def test_what_is_returned_is_what_the_formulas_give():
    respond, _ = on_and_off()
    found = found_in(respond, 2, 0, temperature=0.3)
    for cluster in range(2):
        aim = objective("discriminative", labels=found.labels, cluster=cluster, temperature=0.3)
        value = aim(respond(torch.from_numpy(found.images)))
        assert np.isclose(value[cluster], found.objective[cluster], atol=1e-9)
        assert 0.9 * np.log(2) < found.objective[cluster] <= np.log(2)
    r = respond(torch.from_numpy(found.images)).numpy()
    assert np.array_equal(r.argmax(0), found.labels)
    assert np.isclose(found.history["objective"].iloc[-1], found.objective.mean())


def test_three_planted_groups_from_given_labels_and_seeds():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((SIZE * SIZE, 3)))[0]
    truth = np.repeat([0, 1, 2], [5, 9, 4])
    W = torch.from_numpy(axes[:, truth] + 0.03 * rng.standard_normal((SIZE * SIZE, 18)))

    def respond(images):
        return (images.flatten(1) @ W).relu()

    swapped = truth.copy()
    swapped[[0, 6, 17]] = [1, 2, 0]
    found = found_in(respond, swapped * 10 + 5, 0)
    assert adjusted_rand_score(truth, found.labels) == 1 and np.array_equal(found.labels, truth)
    again = found_in(respond, swapped, 0)
    assert np.array_equal(again.stimuli, found.stimuli)
    assert not np.array_equal(found_in(respond, swapped, 1).stimuli, found.stimuli)


def test_the_scale_of_units_is_taken_out_by_mean_and_std():
    """A loud unit must not draw others to its cluster; scaled by its own statistics it is one like any."""
    respond, truth = on_and_off()
    gain = torch.ones(42, dtype=torch.float64)
    gain[np.flatnonzero(truth == 0)[:2]] = 1e3

    def loud(images):
        return respond(images) * gain + 50 * gain

    reference = loud(start(500, torch.Generator().manual_seed(0)))
    options = {"mean": reference.mean(0).numpy(), "std": reference.std(0).numpy()}
    found = found_in(loud, 5, 0, **options)
    assert adjusted_rand_score(truth, found.labels) == 1


def test_units_without_response_are_in_no_cluster():
    respond, truth = on_and_off(12)
    lost = torch.zeros(12, dtype=torch.float64)
    lost[[2, 7]] = torch.nan
    given = np.arange(12) % 3
    with pytest.warns(UserWarning, match="2 of 12 units have no response") as caught:
        found = found_in(lambda images: respond(images) + lost, given, 0, std=np.ones(12), mean=np.zeros(12))
    assert len(caught) == 1
    kept = np.setdiff1d(np.arange(12), [2, 7])
    assert (found.labels[[2, 7]] == -1).all()
    assert adjusted_rand_score(truth[kept], found.labels[kept]) == 1
    alone = found_in(lambda images: respond(images)[:, kept], given[kept], 0)
    assert np.array_equal(alone.labels, found.labels[kept]) and np.array_equal(alone.stimuli, found.stimuli)


def test_an_early_end_is_told():
    respond, _ = on_and_off()
    with pytest.warns(UserWarning, match="units still move after iterations=1"):
        found = found_in(respond, 5, 0, iterations=1)
    assert len(found.history) == 1 and len(found.stimuli) == found.labels.max() + 1


def test_one_cluster_says_nothing():
    respond, _ = on_and_off(6)
    found = found_in(respond, 1, 0)
    assert (found.labels == 0).all() and np.allclose(found.objective, 0)


@pytest.mark.parametrize(
    ("clusters", "options", "message"),
    [
        (0, {}, "clusters=0 of 6 units"),
        (7, {}, "clusters=7 of 6 units"),
        ([0, 1], {}, r"clusters has shape \(2,\)"),
        (2, {"restarts": 0}, "restarts=0 must be at least 1"),
        (2, {"iterations": 0}, "iterations=0 must be at least 1"),
        (2, {"temperature": 0.0}, "temperature=0.0 must be above 0"),
    ],
)
def test_bad_input_is_named(clusters, options, message):
    respond, _ = on_and_off(6)
    with pytest.raises(ValueError, match=message):
        found_in(respond, clusters, 0, **options)
