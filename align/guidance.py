"""Guidance of diffusion by an encoder, for any sampler: only the noise that a model predicts is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def guide(
    noise: Tensor,
    latent: Tensor,
    alpha_bar: float | Tensor,
    decode: Callable[[Tensor], Tensor],
    respond: Callable[[Tensor], Tensor],
    objective: Callable[[Tensor], Tensor],
    scale: float,
    blend: bool = True,
) -> Tensor:
    """Change predicted noise so that sampling drifts to what an encoder responds to.

    BrainDiVE (Luo et al. 2023, NeurIPS)::

        x0 = (z - sqrt(1 - alpha_bar) e) / sqrt(alpha_bar)
        z~ = sqrt(1 - alpha_bar) x0 + (1 - sqrt(1 - alpha_bar)) z
        e' = e - sqrt(1 - alpha_bar) * gradient in z of scale * objective(respond(decode(z~)))

    Parameters
    ----------
    noise : Tensor, shape of `latent`
        e, the noise that the model predicts. Where it hangs on `latent` in torch's graph, gradients flow through the
        model as well, as they do in the published code; a detached one is taken as constant.
    latent : Tensor, shape (stimulus, ...)
        z at this step; it must require gradients.
    alpha_bar : float or Tensor without axes
        Share of the signal's variance in the latent, in (0, 1].
    decode : callable
        Latents to what `respond` takes: scale of the autoencoder, its decoder, clamping, resizing.
    respond : callable
        To responses (stimulus, unit): ``encoder.torch_module()``, or a backbone and that.
    objective : callable
        Responses to (stimulus,), as `objectives.objective` makes it.
    scale : float
        gamma; 130 in the paper.
    blend : bool
        z~ as published; False takes x0 in its place.

    Returns
    -------
    Tensor
        e', detached.

    Notes
    -----
    With ``blend=False`` and noise on the graph this is exact for Gaussian data: for data N(m, S) and a linear objective
    w . x, the noise is that of N(m + scale S w, S) at every step. The published blend shifts the mean by a vector that
    differs from scale S w by 23, 12 and 7 % of its length in the three cases of tests/align/test_guidance.py.
    With a detached noise and ``blend=False`` the gradient is divided by sqrt(alpha_bar), which grows without bound
    where the latent is mostly noise.

    Raises
    ------
    ValueError
        If `latent` requires no gradients, shapes differ, `alpha_bar` is out of (0, 1] or the objective does not depend
        on the latent.
    """
    import torch

    if not latent.requires_grad:
        raise ValueError("latent requires no gradients; call latent.requires_grad_() before the noise is predicted")
    if noise.shape != latent.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, latent {tuple(latent.shape)}; they must be the same")
    share = torch.as_tensor(alpha_bar, dtype=latent.dtype, device=latent.device)
    if share.ndim or not 0 < share <= 1:
        raise ValueError(f"alpha_bar={alpha_bar} must be one number in (0, 1]")
    with torch.enable_grad():
        clean = (latent - (1 - share).sqrt() * noise) / share.sqrt()
        at = (1 - share).sqrt() * clean + (1 - (1 - share).sqrt()) * latent if blend else clean
        value = objective(respond(decode(at))).sum()
        if not value.requires_grad:
            raise ValueError("the objective does not depend on the latent: somewhere on the way gradients stop")
        (gradient,) = torch.autograd.grad(scale * value, latent)
    return (noise - (1 - share).sqrt() * gradient).detach()


def sample(
    noise_model: Callable[[Tensor, Tensor], Tensor],
    shape: Sequence[int],
    alphas_bar: Tensor,
    guidance: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    steps: int | None = None,
    eta: float = 0.0,
    seed: int = 0,
    start: Tensor | None = None,
) -> Tensor:
    """Draw from a diffusion model: DDIM (Song et al. 2021, ICLR) at eta 0, ancestral sampling at eta 1.

    Parameters
    ----------
    noise_model : callable
        ``noise_model(latent, alpha_bar)`` predicts the noise; alpha_bar is a tensor without axes.
    shape : sequence of int
        Of the latents, (stimulus, ...).
    alphas_bar : Tensor, shape (time,)
        Schedule, falling from nearly 1 to nearly 0; latents have its dtype and device.
    guidance : callable or None
        ``guidance(noise, latent, alpha_bar)`` gives the noise that is used, as `guide` does. The latent then requires
        gradients and the noise hangs on it.
    steps : int or None
        Times of the schedule that are used, evenly spread, with its last; None is all.
    eta : float
        Share of the noise that is drawn anew in each step, from 0 to 1.
    seed : int
    start : Tensor or None
        First latent; None is standard Gaussian noise.

    Returns
    -------
    Tensor
        Latents at the end, alpha_bar = 1.

    Raises
    ------
    ValueError
        If the schedule does not fall within (0, 1), `start` does not have the shape, or a number is out of its range.
    """
    import torch

    n_times = len(alphas_bar)
    if alphas_bar.ndim != 1 or not n_times or not ((alphas_bar > 0) & (alphas_bar < 1)).all():
        raise ValueError(f"alphas_bar of shape {tuple(alphas_bar.shape)} must be a schedule (time,) within (0, 1)")
    if not (alphas_bar.diff() < 0).all():
        raise ValueError("alphas_bar must fall with time, from nearly 1 to nearly 0")
    steps = n_times if steps is None else steps
    if not 1 <= steps <= n_times or not 0 <= eta <= 1:
        raise ValueError(
            f"steps={steps} must be from 1 to {n_times}, the times of alphas_bar, and eta={eta} from 0 to 1"
        )
    generator = torch.Generator(alphas_bar.device).manual_seed(seed)

    def gaussian() -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=alphas_bar.dtype, device=alphas_bar.device)

    latent = gaussian() if start is None else start.detach().to(alphas_bar)
    if latent.shape != tuple(shape):
        raise ValueError(f"start has shape {tuple(latent.shape)}, shape={tuple(shape)} is asked for")
    times = torch.linspace(n_times - 1, 0, steps, dtype=torch.float64).round().long().tolist()
    for i, time in enumerate(times):
        now = alphas_bar[time]
        after = alphas_bar[times[i + 1]] if i + 1 < steps else torch.ones_like(now)
        if guidance is None:
            with torch.no_grad():
                noise = noise_model(latent, now)
        else:
            with torch.enable_grad():
                latent = latent.detach().requires_grad_()
                noise = guidance(noise_model(latent, now), latent, now)
        with torch.no_grad():
            clean = (latent - (1 - now).sqrt() * noise) / now.sqrt()
            drawn = eta * ((1 - after) / (1 - now)).sqrt() * (1 - now / after).sqrt()
            latent = after.sqrt() * clean + (1 - after - drawn**2).clamp_min(0).sqrt() * noise
            if eta > 0:
                latent = latent + drawn * gaussian()
    return latent.detach()
