"""Objectives: one number for each stimulus from the responses to it, differentiable in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..datasets.errors import unknown

if TYPE_CHECKING:
    from torch import Tensor

    Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ObjectiveCard:
    """An objective: a number for each stimulus, from the responses to it.

    Attributes
    ----------
    name, formula : str
    needs : tuple of str
        Options without which it cannot be made.
    value : callable
        ``value(responses (stimulus, unit), **options)`` gives a tensor (stimulus,).
    """

    name: str
    formula: str
    needs: tuple[str, ...]
    value: Callable[..., Tensor]


def objective(
    name: str, *, sign: float = 1.0, mean: ArrayLike | None = None, std: ArrayLike | None = None, **options: Any
) -> Objective:
    """Make an objective of predicted responses, differentiable in them.

    =====================  ===========================  ========================================================
    name                   options                      value for responses r of a stimulus
    =====================  ===========================  ========================================================
    ``unit``               unit                         r_unit
    ``roi-mean``           units                        mean of r over the units
    ``roi-contrast``       units, against               mean of r over the units less that over those against
    ``cosine-to-target``   target                       r . target / (||r|| ||target||)
    ``discriminative``     labels, cluster,             rbar_c / tau - log sum_k exp(rbar_k / tau) + log K with
                           temperature (1)              rbar_k the mean over cluster k, K clusters and
                                                        tau = temperature (Burg et al. 2024)
    =====================  ===========================  ========================================================

    A unit whose response is NaN, as that of a unit that an encoder has left out, is left out of means and products.

    Parameters
    ----------
    name : str
    sign : {1, -1}
        -1 for what units respond to least.
    mean, std : array, shape (unit,), or None
        Of each unit over a reference set; responses enter as ``(r - mean) / std``.
    **options
        `units` and `against` are numbers of units or a boolean (unit,); `labels` an integer (unit,).

    Returns
    -------
    callable
        Tensor (stimulus, unit) to tensor (stimulus,).

    Raises
    ------
    ValueError
        If the name or an option is unknown, an option is missing or no unit is named. With responses: if arrays do not
        have as many units.
    """
    if name not in OBJECTIVES:
        raise ValueError(unknown("name", name, OBJECTIVES))
    if abs(sign) != 1:
        raise ValueError(f"sign={sign} gives the direction; take 1 for most or -1 for least")
    card = OBJECTIVES[name]
    known = set(card.needs) | ({"temperature"} if name == "discriminative" else set())
    for option in options:
        if option not in known:
            raise ValueError(unknown("option", option, sorted(known), f"They are those of the objective {name!r}."))
    missing = [option for option in card.needs if option not in options]
    if missing:
        raise ValueError(f"the objective {name!r} needs {', '.join(missing)}; it is {card.formula}")
    for option in ("units", "against"):
        if option in options:
            options[option] = _numbers(option, options[option])
    if options.get("temperature", 1.0) <= 0:
        raise ValueError(f"temperature={options['temperature']} must be above 0")
    centre, scale = (None if values is None else np.asarray(values, float) for values in (mean, std))
    if scale is not None and (scale <= 0).any():
        raise ValueError(f"std is not above 0 in {int((scale <= 0).sum())} units; pass NaN to leave a unit out")

    def value(responses: Tensor) -> Tensor:
        if centre is not None:
            responses = responses - _like(centre, responses, "mean")
        if scale is not None:
            responses = _divided(responses, _like(scale, responses, "std"))
        return sign * card.value(responses, **options)

    return value


def _divided(responses: Tensor, std: Tensor) -> Tensor:
    """Responses over their standard deviations, NaN where that is NaN, with gradients that are never NaN."""
    import torch

    known = ~std.isnan()
    return torch.where(known, responses / torch.where(known, std, 1.0), torch.nan)


def _numbers(option: str, units: ArrayLike) -> np.ndarray:
    """Numbers of units, from numbers or a mask."""
    units = np.atleast_1d(np.asarray(units))
    numbers = np.flatnonzero(units) if units.dtype == bool else units
    if numbers.ndim != 1 or not len(numbers) or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"{option} of dtype {units.dtype} and shape {units.shape} names no unit; give numbers of units or a "
            "boolean for each of them"
        )
    return numbers


def _like(values: np.ndarray, responses: Tensor, argument: str) -> Tensor:
    """An array of one number for each unit, as a tensor beside the responses."""
    import torch

    if values.shape != responses.shape[1:]:
        raise ValueError(f"{argument} has shape {values.shape}, the responses have {responses.shape[1]} units")
    return torch.as_tensor(values, dtype=responses.dtype, device=responses.device)


def _columns(responses: Tensor, option: str, numbers: np.ndarray) -> Tensor:
    import torch

    n_units = responses.shape[1]
    if numbers.min() < -n_units or numbers.max() >= n_units:
        raise ValueError(f"{option} names unit {numbers.max()}, the responses have {n_units} units, counted from 0")
    return responses[:, torch.as_tensor(numbers % n_units, device=responses.device)]


def _unit(responses: Tensor, unit: int) -> Tensor:
    return _columns(responses, "unit", np.atleast_1d(unit))[:, 0]


def _roi_mean(responses: Tensor, units: np.ndarray) -> Tensor:
    return _columns(responses, "units", units).nanmean(1)


def _roi_contrast(responses: Tensor, units: np.ndarray, against: np.ndarray) -> Tensor:
    return _roi_mean(responses, units) - _columns(responses, "against", against).nanmean(1)


def _cosine_to_target(responses: Tensor, target: ArrayLike) -> Tensor:
    import torch

    wanted = _like(np.asarray(target, float), responses, "target").expand_as(responses)
    known = ~(responses.isnan() | wanted.isnan())
    r, wanted = torch.where(known, responses, 0.0), torch.where(known, wanted, 0.0)
    return (r * wanted).sum(1) / (r.norm(dim=1) * wanted.norm(dim=1))


def _discriminative(responses: Tensor, labels: ArrayLike, cluster: Any, temperature: float = 1.0) -> Tensor:
    names, means = cluster_means(responses, labels)
    if cluster not in names:
        raise ValueError(unknown("cluster", cluster, names))
    return log_odds(means, temperature)[:, int(np.flatnonzero(names == cluster)[0])]


def cluster_means(responses: Tensor, labels: ArrayLike) -> tuple[np.ndarray, Tensor]:
    """Labels that occur, and mean responses (stimulus, label) over their units."""
    import torch

    labels = np.asarray(labels)
    if labels.shape != responses.shape[1:]:
        raise ValueError(f"labels have shape {labels.shape}, the responses have {responses.shape[1]} units")
    names = np.unique(labels)
    means = [_columns(responses, "labels", np.flatnonzero(labels == name)).nanmean(1) for name in names]
    return names, torch.stack(means, 1)


def log_odds(means: Tensor, temperature: float) -> Tensor:
    """``m_c / tau - log sum_k exp(m_k / tau) + log K`` of means (stimulus, cluster): 0 where all are alike."""
    scaled = means / temperature
    return scaled - scaled.logsumexp(1, keepdim=True) + float(np.log(means.shape[1]))


OBJECTIVES = {
    card.name: card
    for card in (
        ObjectiveCard("unit", "the response of a unit", ("unit",), _unit),
        ObjectiveCard("roi-mean", "the mean response of units", ("units",), _roi_mean),
        ObjectiveCard(
            "roi-contrast", "the mean response of units less that of others", ("units", "against"), _roi_contrast
        ),
        ObjectiveCard(
            "cosine-to-target", "the cosine of responses and a target (unit,)", ("target",), _cosine_to_target
        ),
        ObjectiveCard(
            "discriminative",
            "how far the mean response of a cluster stands out, labels being the cluster of each unit",
            ("labels", "cluster"),
            _discriminative,
        ),
    )
}
