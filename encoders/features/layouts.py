"""Which axis of a layer's output is what."""

from __future__ import annotations

import torch
from torch import nn

# n stimulus, c or f feature, t token or time, h height, w width
_FIRST_CHANNELS = {2: "nc", 3: "nct", 4: "nchw", 5: "ncthw"}
_LAST_CHANNELS = {2: "nf", 3: "ntf", 4: "nhwc", 5: "nthwc"}
_CHANNELS_FIRST = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm),
    *(nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd),
    nn.modules.pooling._AdaptiveMaxPoolNd,
)


def canonical(tensor: torch.Tensor, layout: str = "", n: int | None = None) -> torch.Tensor:
    """A view of an output with its axes in the order that reductions read.

    Parameters
    ----------
    tensor : Tensor
        Output of a layer for several stimuli.
    layout : str
        A letter per axis, in the order in which they lie: ``n`` stimulus, ``c`` or ``f`` feature, ``t`` token or
        time, ``h`` height, ``w`` width: ``"nct"`` for a convolution over time. Empty where they lie in the order
        that is read anyway.
    n : int, optional
        Stimuli that it must have rows for.

    Returns
    -------
    Tensor
        (stimulus, feature), (stimulus, token, feature), (stimulus, channel, height, width) or (stimulus, channel,
        time, height, width).

    Raises
    ------
    ValueError
        If the layout has another number of axes than the tensor, an unknown letter, or the rows are not `n`.
    """
    order = _order(layout, tensor.ndim)
    if order is not None:
        tensor = tensor.permute(order)
    if n is not None and (tensor.ndim == 0 or tensor.shape[0] != n):
        raise ValueError(f"gives shape {tuple(tensor.shape)} for {n} stimuli; its first axis is not the stimuli")
    return tensor


def canonical_shape(shape: tuple[int, ...], layout: str = "") -> tuple[int, ...]:
    """What `canonical` makes of the shape for one stimulus."""
    order = _order(layout, len(shape) + 1)
    whole = (-1, *shape)  # the stimuli come first, or are not counted in the shape
    return shape if order is None else tuple(whole[axis] for axis in order)[1:]


def _order(layout: str, ndim: int) -> tuple[int, ...] | None:
    """Order of the axes, or None where they are in order."""
    if not layout:
        return None
    axes = layout.replace("f", "c")
    wanted = {"cn": "nc", "cnt": "ntc", "chnw": "nchw", "chntw": "ncthw"}.get("".join(sorted(axes)))
    if wanted is None or len(axes) != ndim:
        raise ValueError(
            f"layout {layout!r} does not fit an output with {ndim} axes; expected one letter per axis: n stimulus, c "
            "or f feature, t token or time, h height, w width"
        )
    return None if axes == wanted else tuple(axes.index(axis) for axis in wanted)


def guess(
    part: nn.Module,
    shape: tuple[int, ...],
    seen: dict[tuple[int, ...], set[str]],
    before: tuple[tuple[int, ...], str] = ((), ""),
) -> str:
    """Layout of an output from the kind of the module; empty where nothing tells it.

    Convolutions, pooling and the norms of convolutions have channels second, linear maps last. A layer norm tells by
    the axis that it fits. An activation, a dropout or a container keeps to the modules of the same shape before it,
    if they agree; padding, of a shape that was not seen, to the module just before it.

    Parameters
    ----------
    part : Module
    shape : tuple of int
        Of its output for one stimulus.
    seen : dict
        Layouts that modules before it were sure of, by shape; extended here.
    before : (tuple of int, str)
        Shape and layout of the call just before it.
    """
    ndim = len(shape) + 1
    sure = ""
    if isinstance(part, _CHANNELS_FIRST):
        sure = _FIRST_CHANNELS.get(ndim, "")
    elif (named := getattr(part, "data_format", None)) in ("channels_first", "channels_last"):  # ConvNeXt's norms
        sure = (_FIRST_CHANNELS if named == "channels_first" else _LAST_CHANNELS).get(ndim, "")
    elif type(part).forward in (nn.Linear.forward, nn.LayerNorm.forward, nn.RMSNorm.forward):
        sure = _LAST_CHANNELS.get(ndim, "")
    elif isinstance(part, nn.LayerNorm | nn.RMSNorm):
        first, last = shape[:1] == part.normalized_shape, shape[-1:] == part.normalized_shape
        if first != last and len(part.normalized_shape) == 1:
            sure = (_FIRST_CHANNELS if first else _LAST_CHANNELS).get(ndim, "")
    known = seen.setdefault(shape, set())
    if not known and "c" in before[1] and len(shape) == len(before[0]) and not any(True for _ in part.parameters()):
        channel = before[1].index("c") - 1
        sure = before[1] if shape[channel] == before[0][channel] else ""
    if sure:
        known.add(sure)
        return sure
    return next(iter(known)) if len(known) == 1 else ""
