"""Masks, or maps of features, that are warped for each stimulus by what it shows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...datasets.errors import unknown
from ..routing.kernels import product_grad
from .base import GradientReadout
from .factorized import whole
from .parameters import require_whole
from .sampling import (
    TRANSFORMS,
    as_maps,
    bilinear,
    by_blocks,
    cell_centres,
    transform_matrix,
    warped_points,
)
from .setup import Finished, Setup
from .tokens import Grid
from .training import Fitted
from .unit_ridge import pooled_start

WARPS = ("units", "features", "both")


class SemanticTransformerReadout(GradientReadout):
    """A factorised readout whose masks, and whose maps of features, are warped for each stimulus by what it shows.

    ``y_v = b_v + sum_c w_vc sum_t s~_vt phi~_tc``. The mask s_v is not negative and of length one. A localiser, one
    projection of every token to a few channels, reads the whole stimulus, and a small network makes of it the
    transform by which each unit's mask is sampled, s~_v, and one for each feature's map, phi~_c. All transforms start
    as the identity, where the readout is `FactorizedReadout` with a mask of length one.

    Parameters
    ----------
    transformation : {"affine", "translation", "rotation", "scale", "shear"}
        What warps are made of; comparing them says which invariance responses show.
    channels : int
        Channels of the localiser.
    hidden : int
        Hidden units of the networks from the localiser to the transforms.
    warp : {"both", "units", "features"}
        What is warped.
    grid : (height, width) or None
        Places of the tokens; needed where there is more than one.
    loss : {"mse", "correlation", "poisson"}
    lr : float, several, or None
        None tries 0.003, 0.01 and 0.03. The localiser and its networks take a tenth of it.
    weight_decay : float
        Of the features' weights, localiser and networks.
    epochs, batch_size, patience, validation, precision, compile, checkpoint, seed, device, verbose
        As in `GradientReadout`.

    Attributes
    ----------
    masks_ : ndarray, shape (unit, height, width)
        Before any warp; NaN for units that are left out.
    feature_weights_ : ndarray, shape (unit, feature)
        Of tokens in standard deviations, on the scale of training.

    Notes
    -----
    In the paper the localiser reads a second, pretrained network, so that a gain may come from its features as well as
    from the warps. Here it reads the tokens that the readout reads, and differences to `FactorizedReadout` are the
    warps'. One warp cannot jump to wherever a small object is, as a mask follows the gradient of what it overlaps;
    content that may be anywhere is for `AttentionRouter`.

    Masks are zero outside the image; maps of features go on as their outer places, where the published code has zeros.

    References
    ----------
    Saha, A., Chadha, S. & Khosla, M. (2024). Modeling the human visual system: comparative insights from
    response-optimized and task-optimized vision models, language models, and different readout mechanisms.
    arXiv:2410.14031.

    Jaderberg, M., Simonyan, K., Zisserman, A. & Kavukcuoglu, K. (2015). Spatial transformer networks. Advances in
    Neural Information Processing Systems 28.
    """

    _rates = (3e-3, 1e-2, 3e-2)

    def __init__(
        self,
        transformation="affine",
        channels=4,
        hidden=32,
        warp="both",
        grid=None,
        loss="mse",
        lr=None,
        weight_decay=1e-4,
        epochs=60,
        batch_size=128,
        patience=10,
        validation=0.1,
        precision="float32",
        compile=False,
        checkpoint=None,
        seed=0,
        device="auto",
        verbose=None,
    ):
        self.transformation = transformation
        self.channels = channels
        self.hidden = hidden
        self.warp = warp
        self.grid = grid
        self.loss = loss
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.patience = patience
        self.validation = validation
        self.precision = precision
        self.compile = compile
        self.checkpoint = checkpoint
        self.seed = seed
        self.device = device
        self.verbose = verbose

    def _needs_grid(self) -> str:
        return "a warp"

    def _build(self, setup: Setup, lr: float) -> nn.Module:
        if self.transformation not in TRANSFORMS:
            raise ValueError(unknown("transformation", self.transformation, TRANSFORMS))
        if self.warp not in WARPS:
            raise ValueError(unknown("warp", self.warp, WARPS))
        require_whole("channels", self.channels, 1)
        require_whole("hidden", self.hidden, 1)
        assert setup.grid is not None
        return SemanticTransformerModule(
            pooled_start(setup),
            setup.bias,
            setup.grid,
            str(self.transformation),
            str(self.warp),
            int(self.channels),
            int(self.hidden),
            float(self.weight_decay),
            setup.generator,
        )

    def _finish(self, module: nn.Module, setup: Setup, fitted: Fitted) -> Finished:
        assert isinstance(module, SemanticTransformerModule)
        assert setup.grid is not None
        with torch.no_grad():
            self.masks_ = whole(module.masks().cpu().numpy(), setup).reshape(setup.n_all, *setup.grid)
            self.feature_weights_ = whole(module.weight.cpu().numpy(), setup)
        return Finished(module, fitted.validation_r)


class SemanticTransformerModule(nn.Module):
    """Masks times features' weights, with warps that the stimulus decides.

    Parameters
    ----------
    weight : Tensor, shape (unit, feature)
        Of the mean token, where training starts.
    bias : Tensor, shape (unit,)
    grid : (height, width)
    transform, warp : str
    channels, hidden : int
    weight_decay : float
    generator : torch.Generator
        For the masks' noise.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        grid: Grid,
        transform: str,
        warp: str,
        channels: int,
        hidden: int,
        weight_decay: float,
        generator: torch.Generator,
    ):
        super().__init__()
        v, d = weight.shape
        t = grid[0] * grid[1]
        self.grid, self.transform, self.weight_decay = grid, transform, weight_decay
        self.centres: Tensor
        self.register_buffer("centres", cell_centres(grid))
        noise = 1e-3 * torch.randn(v, t, generator=generator)
        self.place = nn.Parameter(((1 + noise) / t**0.5).clamp(min=0))
        self.weight = nn.Parameter(weight / t**0.5)
        self.bias = nn.Parameter(bias.clone())
        self.localiser = nn.Linear(d, channels, bias=False)
        numbers = TRANSFORMS[transform]
        self.of_units = warper(t * channels, hidden, v * numbers) if warp in ("units", "both") else None
        self.of_features = warper(t * channels, hidden, d * numbers) if warp in ("features", "both") else None

    def masks(self) -> Tensor:
        """Masks before any warp, shape (unit, token)."""
        return self.place / (self.place.norm(dim=1, keepdim=True) + 1e-6)

    def transforms(self, x: Tensor, network: nn.Module) -> Tensor:
        """Matrices (row, unit or feature, 2, 3) of what a network makes of the tokens."""
        numbers = network(self.localiser(x).flatten(1)).to(self.centres.dtype)
        return transform_matrix(numbers.unflatten(1, (-1, TRANSFORMS[self.transform])), self.transform)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (row, unit) to standardised tokens (row, token, feature)."""
        n, t, d = x.shape
        masks, weight = self.masks(), self.weight
        features = x if self.of_features is None else self.warped_features(x)
        if self.of_units is None:
            flat = features.flatten(1)

            def still(units: slice) -> Tensor:
                return product_grad(flat, (masks[units, :, None] * weight[units, None, :]).flatten(1))

            return by_blocks(still, len(weight), 4 * t * d) + self.bias

        matrices = self.transforms(x, self.of_units)

        def moved(units: slice) -> Tensor:
            points = warped_points(matrices[:, units].transpose(0, 1), self.centres)  # (unit, row, token, 2)
            maps = masks[units].view(-1, 1, *self.grid)
            fields = bilinear(maps, points.flatten(1, 2), outside="zeros").view(-1, n, t)
            return torch.einsum("ntv,vnt->nv", product_grad(features, weight[units]).to(fields.dtype), fields)

        return by_blocks(moved, len(weight), 20 * n * t) + self.bias

    def warped_features(self, x: Tensor) -> Tensor:
        """Tokens (row, token, feature) whose features' maps are warped, each by its own transform."""
        n, t, d = x.shape
        assert self.of_features is not None
        points = warped_points(self.transforms(x, self.of_features), self.centres)  # (row, feature, token, 2)
        maps = as_maps(x.to(points.dtype), self.grid).reshape(n * d, 1, *self.grid)
        warped = bilinear(maps, points.flatten(0, 1), outside="border").view(n, d, t)
        return warped.transpose(1, 2).to(x.dtype).contiguous()

    def parameter_groups(self, lr: float) -> list[dict[str, object]]:
        """Masks at the learning rate, without decay; weights; the networks of the transforms at a tenth of it."""
        networks = [self.localiser, *(part for part in (self.of_units, self.of_features) if part is not None)]
        return [
            {"params": [self.place, self.bias], "weight_decay": 0.0},
            {"params": [self.weight], "weight_decay": self.weight_decay},
            {
                "params": [p for network in networks for p in network.parameters()],
                "lr": 0.1 * lr,
                "weight_decay": self.weight_decay,
            },
        ]

    def constrain(self) -> None:
        """No mask is negative anywhere."""
        self.place.clamp_(min=0)


def warper(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A network with one hidden layer whose outputs start at zero: the identity, as transforms count."""
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), last)
