"""New units of a planted population, from few stimuli: the network beside what is best possible, and ridge regression.

Where weights come from one Gaussian, `PopulationPriorRidge` knows the optimum and the network can only come near it.
Where they come in clusters, one Gaussian is wrong and the network has something to find.
"""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from neuralign.encoders.routing.in_context import InContextEncoder
from neuralign.encoders.routing.learning_curve import learning_curve
from neuralign.encoders.routing.population import PopulationPriorRidge

F = 16
SIZES = (10, 20, 30, 50)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class World:
    """A population, 500 units to learn it from, and 200 new ones."""

    def __init__(self, kind, seed):
        rng = np.random.default_rng(100 + seed)
        self.kind, self.root, self.centres = kind, rng.standard_normal((F, 3)), rng.standard_normal((8, F))
        rng = np.random.default_rng(seed)
        self.X = rng.standard_normal((1000, F))
        self.Y, _ = self.units(self.X, 500, rng)
        self.X_new = rng.standard_normal((700, F))
        self.Y_new, self.signal = self.units(self.X_new, 200, rng)

    def weights(self, v, rng):
        """Of units that are drawn: three directions, or eight clusters."""
        if self.kind == "gaussian":
            return self.root @ rng.standard_normal((3, v)) + 0.2 * rng.standard_normal((F, v))
        return self.centres[rng.integers(0, 8, v)].T + 0.15 * rng.standard_normal((F, v))

    def units(self, X, v, rng):
        signal = X @ self.weights(v, rng)
        signal /= signal.std(0)
        share = rng.uniform(0.3, 0.9, v)
        signal *= np.sqrt(share)
        return signal + np.sqrt(1 - share) * rng.standard_normal(signal.shape), signal

    def r(self, encoder):
        """With the signal of the new units, on stimuli that no context holds."""
        predicted = encoder.predict(self.X_new[200:])
        return np.mean([np.corrcoef(p, s)[0, 1] for p, s in zip(predicted.T, self.signal[200:].T, strict=True)])

    def conditioned(self, encoder):
        return {n: self.r(encoder.condition(self.X_new[:n], self.Y_new[:n])) for n in SIZES}

    def ridge(self):
        """Told the best penalty for each size, by the test."""
        return {
            n: max(self.r(Ridge(alpha).fit(self.X_new[:n], self.Y_new[:n])) for alpha in np.logspace(-1, 2.5, 8))
            for n in SIZES
        }


def small(**parameters):
    """A network that a processor trains in a minute."""
    sizes = {"width": 64, "layers": 2, "context": (5, 60), "query_rows": 64, "lr": 3e-3, "verbose": False}
    return InContextEncoder(**sizes | parameters)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_one_gaussian_is_approached_and_not_beaten(seed):
    world = World("gaussian", seed)
    encoder = small(steps=(500, 500, 1), seed=seed).pretrain(world.X, population=world.weights)
    network, ridge = world.conditioned(encoder), world.ridge()
    best = world.conditioned(PopulationPriorRidge().fit(world.X, world.Y))
    for n in SIZES:
        assert 0.9 * best[n] <= network[n] <= best[n] + 0.01, (n, network[n], best[n])
        assert network[n] > ridge[n] + 0.03, (n, network[n], ridge[n])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_are_found_that_one_gaussian_does_not_hold(seed):
    world = World("clusters", seed)
    encoder = small(steps=(400, 400, 1), seed=seed).pretrain(world.X, population=world.weights)
    network, ridge = world.conditioned(encoder), world.ridge()
    gaussian, mixture = (world.conditioned(PopulationPriorRidge(k).fit(world.X, world.Y)) for k in (1, 8))
    for n in SIZES:
        assert network[n] > ridge[n] + 0.05, (n, network[n], ridge[n])
        assert mixture[n] > gaussian[n] + 0.01, (n, mixture[n], gaussian[n])
        assert network[n] < mixture[n] + 0.01, (n, network[n], mixture[n])
    for n in SIZES[1:]:
        assert network[n] > gaussian[n] + 0.01, (n, network[n], gaussian[n])


@pytest.mark.slow
def test_what_real_units_have_in_common_is_learned_from_them():
    """Drawn units are isotropic here: what goes beyond ridge regression comes from the third stage."""
    world = World("clusters", 0)
    start = small(steps=(300, 300, 1)).pretrain(world.X)
    encoder = small(steps=(200, 200, 500)).pretrain(world.X, world.Y)
    before, after, ridge = world.conditioned(start), world.conditioned(encoder), world.ridge()
    for n in (10, 20, 30):
        assert after[n] > ridge[n] + 0.05, (n, after[n], ridge[n])
        assert after[n] > before[n] + 0.05, (n, after[n], before[n])


def test_a_learned_prior_saves_stimuli():
    """With a prior ten stimuli do what ridge regression needs thirty for."""
    world = World("gaussian", 0)
    prior = PopulationPriorRidge().fit(world.X, world.Y)
    encoders = {"prior": prior, "ridge": Ridge(10)}
    table = learning_curve(encoders, world.X_new, world.Y_new, sizes=(10, 30, 100, 300), repeats=3)
    r = table.groupby(["encoder", "n"])["r"].mean()
    for name in encoders:
        assert r[name].is_monotonic_increasing
    assert r["prior", 10] > r["ridge", 30]
    assert abs(r["prior", 300] - r["ridge", 300]) < 0.02
