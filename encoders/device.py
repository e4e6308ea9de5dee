"""Where tensors are computed."""

from __future__ import annotations

import torch


def pick_device(device: str) -> torch.device:
    """``"auto"`` is a GPU when there is one, else the CPU; anything else as torch names it.

    Raises
    ------
    ValueError
        If torch does not know the device, or it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is unknown to torch; take 'auto', 'cpu' or 'cuda'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: torch finds no CUDA device here; take 'auto' or 'cpu'")
    return chosen
