"""Where tensors are computed."""

from __future__ import annotations

from typing import Any

import torch


def pick_device(device: Any) -> torch.device:
    """``"auto"`` is a GPU when there is one, else the CPU; anything else as torch names it.

    Raises
    ------
    ValueError
        If torch does not know the device, or it is not there.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if not isinstance(device, str | torch.device):
            raise TypeError(f"{type(device).__name__} names no device")
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is unknown to torch; take 'auto', 'cpu' or 'cuda'") from error
    n_cuda = torch.cuda.device_count() if chosen.type == "cuda" else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= n_cuda:
        found = f"{n_cuda} CUDA devices" if n_cuda else "no CUDA device"
        raise ValueError(f"device={device!r}: torch finds {found} here; take 'auto' or 'cpu'")
    try:
        torch.zeros(1, device=chosen).cpu()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ValueError(f"device={device!r} does not compute here; take 'auto', 'cpu' or 'cuda'") from error
    return chosen


def doubles_are_fast(device: torch.device) -> bool:
    """Whether float64 runs at about half the rate of float32, as on CPUs and data-centre GPUs, or far below it."""
    if device.type != "cuda":
        return True
    return torch.cuda.get_device_capability(device) in {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
