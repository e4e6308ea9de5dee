"""How a module is run: its device, its precision, its layout in memory, compiled or not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ....datasets.errors import unknown

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_precision(precision: str, device: torch.device) -> str:
    """``"auto"`` is bfloat16 on GPUs that compute with it (compute capability 8.0 and later), else float32.

    Raises
    ------
    ValueError
        If the precision is unknown.
    """
    if precision == "auto":
        modern = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return "bfloat16" if modern else "float32"
    if precision not in PRECISIONS:
        raise ValueError(unknown("precision", precision, ["auto", *PRECISIONS]))
    return precision


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Automatic casts to a precision; TensorFloat-32 on GPUs only where less than float32 was asked for."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before and precision != "float32"
    casts: AbstractContextManager[Any] = nullcontext()
    if precision != "float32":
        casts = torch.autocast(device.type, PRECISIONS[precision])
    try:
        with casts:
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def evaluation(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A module in evaluation mode on a device; afterwards in the mode and on the device in which it was."""
    modes = {part: part.training for part in module.modules()}
    homes = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    if len(homes) > 1:
        raise ValueError(f"model: its tensors lie on {sorted(map(str, homes))}; move it to one device")
    try:
        module.eval().to(device)
        yield
    finally:
        for home in homes:
            module.to(home)
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def laid_out(module: nn.Module) -> Iterator[torch.memory_format]:
    """A network of convolutions with its kernels channels last, which libraries compute with at least as fast.

    Yields
    ------
    torch.memory_format
        In which images are to be handed to it; contiguous for anything that attends.
    """
    kernels = [part for part in module.modules() if isinstance(part, nn.Conv2d) and "weight" in part._parameters]
    attends = any("attention" in type(part).__name__.lower() for part in module.modules())
    plain = all(part.weight.is_contiguous() for part in kernels)
    if not kernels or attends or not plain:
        last = bool(kernels) and not attends
        yield torch.channels_last if last else torch.contiguous_format
        return
    try:
        for part in kernels:
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)
        yield torch.channels_last
    finally:
        for part in kernels:
            part.weight.data = part.weight.data.contiguous()


@contextmanager
def compiled(module: nn.Module, watched: Collection[str]) -> Iterator[None]:
    """The largest parts of a module that hold none of the watched ones inside, compiled.

    Hooks stand at watched modules, outside of what is compiled, so that they are called as they are without it.

    Parameters
    ----------
    module : torch.nn.Module
    watched : collection of str
        Names of submodules with hooks; ``output`` is the module itself.
    """
    inside = {name for layer in watched if layer != "output" for name in _above(layer)}
    chosen: list[nn.Module] = []

    def visit(part: nn.Module, name: str) -> None:
        if name in inside:
            for child, member in part.named_children():
                visit(member, f"{name}.{child}".lstrip("."))
        elif type(part).forward is not nn.Module.forward and "forward" not in vars(part):
            chosen.append(part)

    visit(module, "")
    try:
        for part in chosen:
            part.forward = torch.compile(part.forward, dynamic=False)
        yield
    finally:
        for part in chosen:
            vars(part).pop("forward", None)


def _above(layer: str) -> list[str]:
    """Names of everything that a submodule lies in: "", "a", "a.b" of "a.b.c"."""
    parts = layer.split(".")
    return [".".join(parts[:n]) for n in range(len(parts))]


def handed_over(
    batch: Mapping[str, Any], module: nn.Module, device: torch.device, layout: torch.memory_format
) -> dict[str, Any]:
    """A batch on the device of the module and in its precision; what is no tensor stays as it is."""
    precision = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)

    def moved(x: torch.Tensor) -> torch.Tensor:
        x = x.to(device, precision if x.is_floating_point() else None, non_blocking=True)
        return x.contiguous(memory_format=layout) if x.ndim == 4 else x

    return {name: moved(x) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
