"""Guidance against diffusion in closed form: Gaussian data, whose guided noise is known at every step."""

import numpy as np
import pytest
import torch

from neuralign.align.guidance import guide, sample

DIMENSIONS = 6
TO_NOISE = torch.cumprod(1 - torch.linspace(1e-4, 0.08, 1000, dtype=torch.float64), 0)  # ends at 5e-18
STABLE = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
DDPM = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)  # ends at 4e-5


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Gaussian:
    """Data N(m, S), responses x and x . w, and the noise that is exact for them."""

    def __init__(self, seed=0, scale=0.7):
        rng = np.random.default_rng(seed)
        root = rng.standard_normal((DIMENSIONS, DIMENSIONS)) / np.sqrt(DIMENSIONS)
        self.m = torch.from_numpy(rng.standard_normal(DIMENSIONS))
        self.S = torch.from_numpy(root @ root.T + 0.2 * np.eye(DIMENSIONS))
        self.w = torch.from_numpy(rng.standard_normal(DIMENSIONS))
        self.scale = scale

    def C(self, ab):
        return torch.linalg.inv(ab * self.S + (1 - ab) * torch.eye(DIMENSIONS, dtype=torch.float64))

    def noise(self, z, ab, m=None):
        return (1 - ab).sqrt() * (z - ab.sqrt() * (self.m if m is None else m)) @ self.C(ab)

    def guided(self, blend, detached=False):
        def change(noise, latent, ab):
            return guide(
                noise.detach() if detached else noise,
                latent,
                ab,
                decode=lambda x: x,
                respond=lambda x: (x @ self.w)[:, None],
                objective=lambda r: r[:, 0],
                scale=self.scale,
                blend=blend,
            )

        return change

    @property
    def shift(self):
        return self.scale * self.S @ self.w


def covariance_error(x, S):
    """Of the covariance of draws, in standard errors."""
    spread = ((S**2 + torch.outer(S.diagonal(), S.diagonal())) / len(x)).sqrt()
    return ((torch.cov(x.T) - S) / spread).abs().max()


def test_the_sampler_draws_the_data():
    world = Gaussian()
    for eta in (0.0, 1.0):
        x = sample(world.noise, (4000, DIMENSIONS), TO_NOISE, eta=eta, seed=1)
        assert ((x.mean(0) - world.m) / (world.S.diagonal() / 4000).sqrt()).abs().max() < 3
        assert covariance_error(x, world.S) < 3.5
    again = sample(world.noise, (4, DIMENSIONS), TO_NOISE, steps=20, eta=1.0, seed=1)
    assert torch.equal(again, sample(world.noise, (4, DIMENSIONS), TO_NOISE, steps=20, eta=1.0, seed=1))
    assert not torch.equal(again, sample(world.noise, (4, DIMENSIONS), TO_NOISE, steps=20, eta=1.0, seed=2))


def test_ddim_follows_its_closed_recursion():
    """Along an axis of S the deterministic sampler takes a latent through the quantiles of its marginals."""
    world = Gaussian()
    start = torch.randn(3, DIMENSIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = sample(world.noise, start.shape, TO_NOISE, start=start)
    values, axes = torch.linalg.eigh(world.S)
    exact = world.m + (start @ axes * values.sqrt()) @ axes.T
    assert torch.allclose(x, exact, atol=0.02)  # 1,000 steps of an integral


@pytest.mark.parametrize("ab", [0.999, 0.5, 0.01, 1e-8])
def test_guided_noise_is_that_of_the_tilted_gaussian(ab):
    world, ab = Gaussian(), torch.tensor(ab, dtype=torch.float64)
    z = torch.randn(5, DIMENSIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = world.guided(blend=False)(world.noise(z, ab), z, ab)
    assert not found.requires_grad
    exact = world.noise(z.detach(), ab, m=world.m + world.shift)
    assert torch.allclose(found, exact, atol=1e-7 if ab < 1e-4 else 1e-12)


def test_guidance_shifts_the_mean_by_scale_times_s_w():
    world = Gaussian()
    start = torch.zeros(1, DIMENSIONS, dtype=torch.float64)
    plain = sample(world.noise, start.shape, TO_NOISE, start=start)
    guided = sample(world.noise, start.shape, TO_NOISE, world.guided(blend=False), start=start)
    assert torch.linalg.norm(guided - plain - world.shift) < 1e-4 * torch.linalg.norm(world.shift)


def test_guided_draws_keep_their_covariance():
    world, n = Gaussian(), 4000
    x = sample(world.noise, (n, DIMENSIONS), TO_NOISE, world.guided(blend=False), eta=1.0, seed=3)
    assert ((x.mean(0) - world.m - world.shift) / (world.S.diagonal() / n).sqrt()).abs().max() < 3
    assert covariance_error(x, world.S) < 3.5
    assert torch.linalg.norm(world.shift) > 20 * (world.S.diagonal() / n).sqrt().max(), "too weak to be seen"


def closed_recursion(world, schedule, blend, detached=False):
    """End of the mean under guided DDIM from 0, in matrices written out by hand."""
    eye = torch.eye(DIMENSIONS, dtype=torch.float64)
    z = torch.zeros(DIMENSIONS, dtype=torch.float64)
    for t in range(len(schedule) - 1, -1, -1):
        ab, after = schedule[t], schedule[t - 1] if t else torch.tensor(1.0, dtype=torch.float64)
        s = (1 - ab).sqrt()
        noise = s * world.C(ab) @ (z - ab.sqrt() * world.m)
        to_clean = (eye if detached else eye - (1 - ab) * world.C(ab)) / ab.sqrt()  # d x0 / d z
        to_image = s * to_clean + (1 - s) * eye if blend else to_clean
        noise = noise - s * world.scale * to_image.T @ world.w
        z = after.sqrt() * (z - s * noise) / ab.sqrt() + (1 - after).sqrt() * noise
    return z


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("schedule", ["DDPM", "STABLE"])
def test_the_published_blend_follows_its_own_recursion(schedule, detached):
    world, schedule = Gaussian(), globals()[schedule]
    start = torch.zeros(1, DIMENSIONS, dtype=torch.float64)
    found = sample(world.noise, start.shape, schedule, world.guided(blend=True, detached=detached), start=start)[0]
    exact = closed_recursion(world, schedule, blend=True, detached=detached)
    assert torch.linalg.norm(found - exact) < 1e-10 * torch.linalg.norm(exact)


def test_what_the_docstring_says():
    """The blend is some per cent off; a detached noise without it grows without bound."""
    for seed, expected in enumerate((0.23, 0.12, 0.07)):
        world = Gaussian(seed)
        plain = sample(world.noise, (1, DIMENSIONS), TO_NOISE, start=torch.zeros(1, DIMENSIONS, dtype=torch.float64))[0]
        size = torch.linalg.norm(world.shift)
        ends = {blend: closed_recursion(world, TO_NOISE, blend) - plain for blend in (True, False)}
        off = {blend: float(torch.linalg.norm(end - world.shift) / size) for blend, end in ends.items()}
        assert off[False] < 1e-6
        assert round(off[True], 2) == expected
        detached = closed_recursion(world, TO_NOISE, blend=False, detached=True)
        assert torch.linalg.norm(detached - plain) > 1e3 * size


@pytest.mark.parametrize("blend", [True, False])
@pytest.mark.parametrize("detached", [True, False])
def test_gradients_of_any_decoder_are_those_of_finite_differences(blend, detached):
    rng = torch.Generator().manual_seed(0)
    net = torch.nn.Linear(4, 4, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.randn(4, 4, generator=rng, dtype=torch.float64))
        net.bias.zero_()
    z0 = torch.randn(2, 4, generator=rng, dtype=torch.float64)
    ab = 0.3
    kept = torch.tanh(net(z0)).detach()

    def value(z):
        noise = kept if detached else torch.tanh(net(z))
        clean = (z - 0.7**0.5 * noise) / 0.3**0.5
        at = 0.7**0.5 * clean + (1 - 0.7**0.5) * z if blend else clean
        return (torch.sin(at) ** 3).sum(1)

    expected = torch.zeros_like(z0)
    for i in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[i] = 1e-5
        expected[:, i] = ((value(z0 + step) - value(z0 - step)) / 2e-5).detach()
    z = z0.clone().requires_grad_()
    noise = torch.tanh(net(z))
    changed = guide(
        noise.detach() if detached else noise, z, ab, torch.sin, lambda x: x**3, lambda r: r.sum(1), 2.5, blend
    )
    assert torch.allclose(changed, kept - 0.7**0.5 * 2.5 * expected, atol=1e-8)


def test_nothing_changes_without_scale_or_noise():
    world = Gaussian(scale=0.0)
    z = torch.ones(2, DIMENSIONS, dtype=torch.float64, requires_grad=True)
    ab = torch.tensor(0.4, dtype=torch.float64)
    noise = world.noise(z, ab)
    assert torch.equal(world.guided(True)(noise, z, ab), noise.detach())
    one = torch.tensor(1.0, dtype=torch.float64)
    strong = Gaussian(scale=5.0)
    assert torch.equal(strong.guided(True)(noise.detach(), z, one), noise.detach())


def test_bad_input_is_named():
    world, ab = Gaussian(), torch.tensor(0.5, dtype=torch.float64)
    z = torch.ones(2, DIMENSIONS, dtype=torch.float64)
    change = world.guided(True)
    with pytest.raises(ValueError, match="latent requires no gradients"):
        change(world.noise(z, ab), z, ab)
    z.requires_grad_()
    with pytest.raises(ValueError, match=r"noise has shape \(1, 6\), latent \(2, 6\)"):
        change(world.noise(z, ab)[:1], z, ab)
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="must be one number in"):
            change(world.noise(z, ab), z, torch.tensor(wrong, dtype=torch.float64))
    with pytest.raises(ValueError, match="does not depend on the latent"):
        guide(z.detach(), z, 0.5, lambda x: x.detach(), lambda x: x, lambda r: r.sum(1), 1.0)
    with pytest.raises(ValueError, match="must fall with time"):
        sample(world.noise, (1, DIMENSIONS), DDPM.flip(0))
    with pytest.raises(ValueError, match="must be a schedule"):
        sample(world.noise, (1, DIMENSIONS), torch.tensor([1.0, 0.5]))
    with pytest.raises(ValueError, match="steps=0 must be from 1 to 1000"):
        sample(world.noise, (1, DIMENSIONS), DDPM, steps=0)
    with pytest.raises(ValueError, match="start has shape"):
        sample(world.noise, (1, DIMENSIONS), DDPM, start=z.detach())
