"""A point on the map for each unit, found by sampling from a Gaussian around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...datasets.errors import unknown
from .base import GradientReadout
from .factorized import whole
from .parameters import require_number, require_whole
from .sampling import as_maps, bilinear, by_blocks, cell_centres
from .setup import Finished, Setup
from .tokens import Grid
from .training import Fitted
from .unit_ridge import best_places, pooled_start

COVARIANCES = ("full", "diagonal", "isotropic")


class GaussianReadout(GradientReadout):
    """Each unit reads the features at one point of the map.

    ``y_v = b_v + <w_v, x(g_v)>`` with x(g) interpolated between the four nearest places. In training the point is drawn
    anew for every stimulus and unit, ``g_v = mu_v + A_v eps``, so that the position is found from far away; what
    predicts is the centre, ``g_v = mu_v``. A unit that adds up a wider field is beyond it: `PoolingGridReadout` and
    `FactorizedReadout` are for those.

    Parameters
    ----------
    covariance : {"full", "diagonal", "isotropic"}
        Form of A_v: lower triangular, diagonal, or one number.
    coordinates : sequence of str, or None
        Columns of the table of units, such as places in cortex, that positions are predicted from by one network for
        all units; None learns the position of each.
    mlp : int
        Hidden units of that network.
    init_position : float or None
        Positions start at random, uniformly between minus this and this, as published. None starts each at the place
        whose token, weighed as ridge on the mean token weighs it, correlates best with the unit: steps along a gradient
        find a position that lies within reach of the start, and features need not vary smoothly over places.
    init_width : float
        What widths start at.
    grid : (height, width) or None
        Places of the tokens; needed where there is more than one.
    loss : {"mse", "correlation", "poisson"}
    lr : float, several, or None
        None tries 0.003, 0.01 and 0.03.
    weight_decay : float
        Of the features' weights.
    epochs, batch_size, patience, validation, precision, compile, checkpoint, seed, device, verbose
        As in `GradientReadout`.

    Attributes
    ----------
    position_ : ndarray, shape (unit, 2)
        x to the right and y down, from -1 to 1 over the image, at most at the centres of the outer places; NaN for
        units that are left out.
    width_ : ndarray, shape (unit, 2)
        Standard deviations along x and y of what positions are drawn from, on the same scale: how sure training was
        of the position, not the size of a receptive field.
    feature_weights_ : ndarray, shape (unit, feature)
        Of tokens in standard deviations, on the scale of training.

    Notes
    -----
    Points that are drawn are held within -1 to 1, and beyond the centres of the outer places the nearest of them is
    read; published code reads zeros there, or has the centres of the outer places at the edges of the image.

    References
    ----------
    Lurz, K.-K. et al. (2021). Generalization in data-driven models of primary visual cortex. International Conference
    on Learning Representations.
    """

    _rates = (3e-3, 1e-2, 3e-2)

    def __init__(
        self,
        covariance="full",
        coordinates=None,
        mlp=30,
        init_position=None,
        init_width=0.3,
        grid=None,
        loss="mse",
        lr=None,
        weight_decay=1e-4,
        epochs=120,
        batch_size=128,
        patience=15,
        validation=0.1,
        precision="float32",
        compile=False,
        checkpoint=None,
        seed=0,
        device="auto",
        verbose=None,
    ):
        self.covariance = covariance
        self.coordinates = coordinates
        self.mlp = mlp
        self.init_position = init_position
        self.init_width = init_width
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
        return "a Gaussian field"

    def _build(self, setup: Setup, lr: float) -> nn.Module:
        if self.covariance not in COVARIANCES:
            raise ValueError(unknown("covariance", self.covariance, COVARIANCES))
        if self.init_position is not None:
            require_number("init_position", self.init_position, zero=True)
        require_number("init_width", self.init_width, zero=True)
        require_whole("mlp", self.mlp, 1)
        assert setup.grid is not None
        centres: Centres | NetworkCentres
        weights = pooled_start(setup)
        if self.coordinates is not None:
            centres = NetworkCentres(standardised_coordinates(self.coordinates, setup), setup.grid, int(self.mlp))
        elif self.init_position is None:
            centres = Centres(cell_centres(setup.grid)[best_places(weights, setup)], setup.grid)
        else:
            drawn = torch.rand(setup.n_units, 2, generator=setup.generator)
            centres = Centres((2 * drawn - 1) * float(self.init_position), setup.grid)
        return GaussianModule(weights, centres, setup.bias, setup.grid, self.covariance, float(self.init_width))

    def _finish(self, module: nn.Module, setup: Setup, fitted: Fitted) -> Finished:
        assert isinstance(module, GaussianModule)
        with torch.no_grad():
            self.position_ = whole(module.centres().cpu().numpy(), setup)
            self.width_ = whole(module.factors().square().sum(2).sqrt().cpu().numpy(), setup)
            self.feature_weights_ = whole(module.weight.cpu().numpy(), setup)
        return Finished(module, fitted.validation_r)


class Centres(nn.Module):
    """A position (unit, 2) for each unit, within the centres of the outer places.

    Beyond them every point reads the same, and no gradient would bring a position back.
    """

    def __init__(self, start: Tensor, grid: Grid):
        super().__init__()
        self.outermost: Tensor
        self.register_buffer("outermost", outermost(grid))
        self.position = nn.Parameter(start)
        with torch.no_grad():
            self.constrain()

    def forward(self) -> Tensor:
        """Positions, shape (unit, 2)."""
        return self.position

    def constrain(self) -> None:
        """Hold the positions where they read something of their own."""
        self.position.copy_(self.position.clamp(-self.outermost, self.outermost))


class NetworkCentres(nn.Module):
    """Positions (unit, 2) that a network with one hidden layer predicts from coordinates (unit, coordinate)."""

    def __init__(self, coordinates: Tensor, grid: Grid, hidden: int):
        super().__init__()
        self.coordinates: Tensor
        self.outermost: Tensor
        self.register_buffer("coordinates", coordinates)
        self.register_buffer("outermost", outermost(grid))
        self.network = nn.Sequential(nn.Linear(coordinates.shape[1], hidden), nn.ELU(), nn.Linear(hidden, 2), nn.Tanh())

    def forward(self) -> Tensor:
        """Positions, shape (unit, 2)."""
        return self.network(self.coordinates) * self.outermost

    def constrain(self) -> None:
        """Positions are within bounds as they are."""


def outermost(grid: Grid) -> Tensor:
    """x and y of the centre of the lower right place."""
    return cell_centres(grid)[-1]


class GaussianModule(nn.Module):
    """Features at a point for each unit.

    Parameters
    ----------
    weight : Tensor, shape (unit, feature)
        Where weights start.
    centres : Centres or NetworkCentres
    bias : Tensor, shape (unit,)
    grid : (height, width)
    covariance : {"full", "diagonal", "isotropic"}
    width : float
        Standard deviation that points start to be drawn with.
    """

    def __init__(
        self,
        weight: Tensor,
        centres: Centres | NetworkCentres,
        bias: Tensor,
        grid: Grid,
        covariance: str,
        width: float,
    ):
        super().__init__()
        self.grid, self.covariance, self.centres = grid, covariance, centres
        numbers = {"full": [width, 0.0, width], "diagonal": [width, width], "isotropic": [width]}[covariance]
        self.spread = nn.Parameter(torch.tensor(numbers).repeat(len(weight), 1))
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias.clone())

    def factors(self) -> Tensor:
        """Lower triangular A of each unit, shape (unit, 2, 2): points are drawn with covariance ``A A'``."""
        p = self.spread
        below = p[:, 1] if self.covariance == "full" else torch.zeros_like(p[:, 0])
        rows = [p[:, 0], torch.zeros_like(below), below, p[:, -1]]
        return torch.stack(rows, 1).view(-1, 2, 2)

    def points(self, n: int) -> Tensor:
        """Where units read: (row, unit, 2) drawn for each of n rows in training, else (1, unit, 2), their centres."""
        centres = self.centres()[None]
        if not self.training:
            return centres
        noise = torch.randn(n, centres.shape[1], 2, device=centres.device, dtype=centres.dtype)
        return (centres + torch.einsum("vij,nvj->nvi", self.factors(), noise)).clamp(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (row, unit) to standardised tokens (row, token, feature)."""
        points = self.points(len(x))
        maps = as_maps(x.to(points.dtype), self.grid)

        def block(units: slice) -> Tensor:
            return torch.einsum("nvd,vd->nv", bilinear(maps, points[:, units]), self.weight[units])

        return by_blocks(block, len(self.weight), 4 * x.shape[0] * x.shape[2]) + self.bias

    def decayed(self) -> list[nn.Parameter]:
        """What weight decay shrinks: weights of features, no positions."""
        return [self.weight]

    def constrain(self) -> None:
        """Hold the centres within bounds."""
        self.centres.constrain()


def standardised_coordinates(columns: Sequence[str] | str, setup: Setup) -> Tensor:
    """Columns of the table of units, in standard deviations over units.

    Parameters
    ----------
    columns : sequence of str
    setup : Setup

    Returns
    -------
    Tensor of float32, shape (unit, column)

    Raises
    ------
    ValueError
        If there is no table, it has no such column, or a unit has no number in one.
    """
    names = [columns] if isinstance(columns, str) else list(columns)
    listed = ", ".join(repr(name) for name in names)
    if not names:
        raise ValueError("coordinates is empty; expected names of columns of the table of units, or None")
    if setup.units is None:
        raise ValueError(
            f"coordinates needs columns {listed} of a table of units, and fit was given none; pass "
            "fit(X, Y, units=recording.units), or take coordinates=None"
        )
    for name in names:
        if name not in setup.units:
            raise ValueError(unknown("coordinate", name, [str(column) for column in setup.units.columns]))
    try:
        values = setup.units[names].to_numpy(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"coordinates {listed} hold what is no number ({error}); expected numbers") from error
    wrong = ~np.isfinite(values).all(1)
    if wrong.any():
        raise ValueError(
            f"coordinates {listed} are not finite for {int(wrong.sum())} of {len(values)} units, the first of them "
            f"unit {setup.kept[wrong.argmax()]}; leave these units out, or take coordinates=None"
        )
    std = values.std(0)
    return torch.from_numpy((values - values.mean(0)) / np.where(std > 0, std, 1.0)).float()
