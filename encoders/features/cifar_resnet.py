"""ResNets for 32 x 32 images (He et al. 2016, section 4.2), with identity shortcuts that pad channels by zeros."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .adapters.checkpoints import load_into, load_state
from .registry import Model, ModelCard, find_weights, register_model
from .vision import IMAGENET_MEAN, IMAGENET_STD, ImageInputs


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.stride = stride
        self.pad = n_out - n_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(out + F.pad(shortcut, (0, 0, 0, 0, self.pad // 2, self.pad - self.pad // 2)))


class CifarResNet(nn.Module):
    """ResNet of depth ``6 n + 2``: ``conv1``, then three stages of n blocks with 16, 32 and 64 channels.

    Like the stages, ``conv1`` is the rectified map that the next one reads; the convolution alone, a linear filter of
    the pixels, is ``conv1.conv``.

    Parameters
    ----------
    depth : int
        20, 32, 44, 56, ...
    n_classes : int
        Outputs of the last layer, ``linear``.
    """

    def __init__(self, depth: int = 20, n_classes: int = 10) -> None:
        super().__init__()
        n_blocks, rest = divmod(depth - 2, 6)
        if rest or n_blocks < 1:
            raise ValueError(f"depth={depth} is not 6 n + 2")
        stem = {"conv": nn.Conv2d(3, 16, 3, padding=1, bias=False), "bn": nn.BatchNorm2d(16), "relu": nn.ReLU()}
        self.conv1 = nn.Sequential(OrderedDict(stem))
        self.layer1 = self._stage(16, 16, n_blocks, 1)
        self.layer2 = self._stage(16, 32, n_blocks, 2)
        self.layer3 = self._stage(32, 64, n_blocks, 2)
        self.linear = nn.Linear(64, n_classes)

    @staticmethod
    def _stage(n_in: int, n_out: int, n_blocks: int, stride: int) -> nn.Sequential:
        first = _Block(n_in, n_out, stride)
        return nn.Sequential(first, *(_Block(n_out, n_out, 1) for _ in range(n_blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(x.mean((2, 3)))


def _as_named_here(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The stem of the published weights has no module of its own."""
    stem = {"conv1.weight": "conv1.conv.weight"}
    return {stem.get(name, re.sub(r"^bn1\.", "conv1.bn.", name)): tensor for name, tensor in state.items()}


def _register(depth: int) -> None:
    card = ModelCard(
        name=f"resnet{depth}-cifar",
        title=f"ResNet-{depth} trained on CIFAR-10",
        citation="He et al. 2016, CVPR; weights: Idelbayev 2018, akamaster/pytorch_resnet_cifar10",
        licence="BSD-2-Clause (weights)",
        modality="image",
        source=f"GitHub akamaster/pytorch_resnet_cifar10, pretrained_models/resnet{depth}-*.th",
        layers=("conv1", "layer1", "layer2", "layer3", "linear"),
        weights=f"resnet{depth}-*.th",
        folders=("weights_cifar_resnet",),
        size="32 x 32",
        preprocessing="whole image to 32 x 32 pixels (bicubic), mean and standard deviation of ImageNet",
    )

    @register_model(card)
    def build(weights: Path | None, untrained: bool, seed: int) -> Model:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = CifarResNet(depth)
        if not untrained:
            path = find_weights(card, weights)
            load_into(module, _as_named_here(load_state(path)), path, card.name)
        return Model(card.name, module.eval(), ImageInputs((32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD))


for _depth in (20, 32, 44, 56):
    _register(_depth)
