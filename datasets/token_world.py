"""A world of spatial tokens in which it is known how each region reads them: by content, by place, by both or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import unknown

KINDS = ("content", "joint", "retinotopic", "global", "mixed", "null")
ATTRIBUTES = 6  # numbers that every token carries, object or background
PRESENT = 0.7  # how often a category is in an image
LABEL = 3.0  # length of the label of a category in a token
NOISE = 0.3  # standard deviation of what no response depends on
FIELD = 1.0  # standard deviation of a receptive field, in cells


@dataclass(frozen=True, eq=False)
class TokenWorld:
    """Tokens, responses to them and what drives the responses.

    Attributes
    ----------
    tokens : ndarray of float32, shape (stimulus, token, feature)
        Row by row of the grid.
    responses : ndarray of float32, shape (stimulus, unit)
        `signal` and independent Gaussian noise.
    signal : ndarray of float32, shape (stimulus, unit)
        Noiseless responses, standardised over the stimuli.
    regions : ndarray of str, shape (unit,)
        Region of each unit.
    names : tuple of str
        Regions, in the order of the columns of `target_cell`.
    preferred : tuple of int
        The category that each region answers to.
    grid : (height, width)
    attributes : ndarray of float32, shape (stimulus, token, attribute)
        What objects and background are like.
    labels : ndarray of int, shape (stimulus, token)
        Category of the object in a cell; -1 where there is none.
    target_cell : ndarray of int, shape (stimulus, region)
        Token that holds the object which the region answers to; -1 in images without it.
    centres : ndarray of float64, shape (unit, 2), or None
        Of receptive fields of the retinotopic world: y and x in cells, the middle of the first cell being 0.
    train, validation, test : ndarray of int
        Rows.
    ceiling : ndarray of float64, shape (unit,)
        Correlation of the signal with the responses; 0 in the null world, where the signal has nothing to do with the
        tokens.
    """

    tokens: np.ndarray
    responses: np.ndarray
    signal: np.ndarray
    regions: np.ndarray
    names: tuple[str, ...]
    preferred: tuple[int, ...]
    grid: tuple[int, int]
    attributes: np.ndarray
    labels: np.ndarray
    target_cell: np.ndarray
    centres: np.ndarray | None
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    ceiling: np.ndarray


def token_world(
    kind: str,
    n: int = 1000,
    n_test: int = 800,
    n_validation: int = 300,
    grid: tuple[int, int] = (7, 7),
    features: int = 32,
    categories: int = 4,
    preferred: Sequence[int] | None = None,
    units_per_region: int = 10,
    ceiling: float = 0.8,
    rho: float = 0.0,
    leakage: float = 0.0,
    shuffle: bool = False,
    seed: int | np.random.Generator = 0,
) -> TokenWorld:
    """Draw tokens and the responses of regions that read them in one known way.

    Every token is ``3 e_label + A p + 0.3 noise``: the direction of a category where an object stands (none in the
    background), attributes ``p ~ N(0, I)`` in six directions of their own, in objects and background alike, and noise.
    A category is in an image with probability 0.7, in one cell; no two objects share a cell. A unit has its own
    weights w. With c the category that its region answers to:

    - **content**: ``w . p`` of the object of category c, wherever it stands; 0 without one. This is a product of what
      a token is and what it is like, so that a readout which is linear in the tokens explains about 1 / T of the
      variance: it cannot know which token to read.
    - **joint**: the same, but only for an object in the left half.
    - **retinotopic**: ``w . sum_t N(t; centre, 1 cell) x_t`` with a centre of each unit, whatever is there.
    - **global**: ``w . mean_t x_t``.
    - **mixed**: content, but the object stands in the home cell of its category with probability `rho`; at 1 a
      readout of fixed places does well, at 0 this is the world of content.
    - **null**: noise of the same size that has nothing to do with the tokens.

    Parameters
    ----------
    kind : {"content", "joint", "retinotopic", "global", "mixed", "null"}
    n, n_test, n_validation : int
        Rows for training, testing and validation.
    grid : (height, width)
        T = height * width tokens.
    features : int
        Length of a token; at least `categories` + 6.
    categories : int
    preferred : sequence of int, or None
        Category of each region; None is one region for each category. A category can have several regions.
    units_per_region : int
    ceiling : float
        Correlation of the signal with the noisy responses, in (0, 1].
    rho : float
        Probability that an object is at home; in the mixed world only.
    leakage : float
        m of ``x_t <- (1 - m) x_t + m mean(x)``, from 0 to 1: how much of its context a token has taken up, as tokens of
        vision transformers do. The responses are those to the tokens before.
    shuffle : bool
        Tokens of every image in an order of their own, after the responses were made.
    seed : int or numpy.random.Generator
        Everything random comes from it.

    Returns
    -------
    TokenWorld

    Raises
    ------
    ValueError
        If `kind` is unknown, a number is out of its range, or `rho` is given to another world than the mixed one.
    """
    if kind not in KINDS:
        raise ValueError(unknown("kind", kind, KINDS))
    preferred = tuple(range(categories)) if preferred is None else tuple(preferred)
    _check_numbers(kind, n, n_test, n_validation, grid, features, categories, preferred, units_per_region)
    for argument, share in (("rho", rho), ("leakage", leakage)):
        if not 0 <= share <= 1:
            raise ValueError(f"{argument}={share} is a share; give a number from 0 to 1")
    if rho and kind != "mixed":
        raise ValueError(f"rho={rho} has no meaning in the {kind} world; take kind='mixed', or leave rho at 0")
    if not 0 < ceiling <= 1:
        raise ValueError(f"ceiling={ceiling} is a correlation of the signal with responses; give one in (0, 1]")

    rng = np.random.default_rng(seed)
    n_all, n_tokens = n + n_validation + n_test, grid[0] * grid[1]
    basis = np.linalg.qr(rng.standard_normal((features, categories + ATTRIBUTES)))[0].T
    attributes = rng.standard_normal((n_all, n_tokens, ATTRIBUTES))
    labels, cells = _place_objects(n_all, n_tokens, categories, rho, rng)
    tokens = attributes @ basis[categories:] + NOISE * rng.standard_normal((n_all, n_tokens, features))
    tokens += (LABEL * np.vstack([basis[:categories], np.zeros(features)]))[labels]  # label -1 is the row of zeros

    target_cell = cells[:, list(preferred)]
    region = np.repeat(np.arange(len(preferred)), units_per_region)
    n_units, centres = len(region), None
    if kind == "retinotopic":
        centres = rng.uniform(0, 1, (n_units, 2)) * (np.array(grid) - 1)
        signal = _retinotopic(tokens, grid, centres, rng.standard_normal((features, n_units)))
    elif kind == "global":
        signal = tokens.mean(1) @ rng.standard_normal((features, n_units))
    elif kind == "null":
        signal = rng.standard_normal((n_all, n_units))
    else:
        read = target_cell >= 0
        if kind == "joint":
            read &= target_cell % grid[1] + 0.5 < grid[1] / 2
        drive = attributes[np.arange(n_all)[:, None], target_cell] * read[..., None]  # (stimulus, region, attribute)
        signal = np.einsum("sua,ua->su", drive[:, region], rng.standard_normal((n_units, ATTRIBUTES)))
    signal = (signal - signal.mean(0)) / signal.std(0)
    responses = signal + np.sqrt(1 / ceiling**2 - 1) * rng.standard_normal(signal.shape)

    tokens = (1 - leakage) * tokens + leakage * tokens.mean(1, keepdims=True)
    if shuffle:
        order = rng.permuted(np.tile(np.arange(n_tokens), (n_all, 1)), axis=1)
        tokens, attributes = (np.take_along_axis(values, order[..., None], 1) for values in (tokens, attributes))
        labels = np.take_along_axis(labels, order, 1)
        place = np.argsort(order, axis=1)  # where each token went
        target_cell = np.where(target_cell < 0, -1, np.take_along_axis(place, target_cell.clip(0), 1))
    names = tuple(f"R{i + 1}" for i in range(len(preferred)))
    rows = np.arange(n_all)
    return TokenWorld(
        tokens=tokens.astype(np.float32),
        responses=responses.astype(np.float32),
        signal=signal.astype(np.float32),
        regions=np.array(names)[region],
        names=names,
        preferred=preferred,
        grid=(grid[0], grid[1]),
        attributes=attributes.astype(np.float32),
        labels=labels,
        target_cell=target_cell,
        centres=centres,
        train=rows[:n],
        validation=rows[n : n + n_validation],
        test=rows[n + n_validation :],
        ceiling=np.full(n_units, 0.0 if kind == "null" else ceiling),
    )


def _check_numbers(
    kind: str,
    n: int,
    n_test: int,
    n_validation: int,
    grid: tuple[int, int],
    features: int,
    categories: int,
    preferred: tuple[int, ...],
    units_per_region: int,
) -> None:
    for argument, value, least in (
        ("n", n, 2),
        ("n_test", n_test, 0),
        ("n_validation", n_validation, 0),
        ("categories", categories, 1),
        ("units_per_region", units_per_region, 1),
    ):
        if value < least:
            raise ValueError(f"{argument}={value} is too few; at least {least} are needed")
    n_tokens = grid[0] * grid[1]
    if min(grid) < 1 or n_tokens < categories:
        raise ValueError(f"grid={grid} has no room for categories={categories} objects in cells of their own")
    if kind == "joint" and grid[1] < 2:
        raise ValueError(f"grid={grid} has no left half; the joint world needs a width of at least 2")
    if features < categories + ATTRIBUTES:
        raise ValueError(
            f"features={features} are too few for categories={categories} and {ATTRIBUTES} attributes in directions of "
            f"their own; at least {categories + ATTRIBUTES} are needed"
        )
    if not preferred or not all(0 <= category < categories for category in preferred):
        raise ValueError(
            f"preferred={preferred} names the category of each region; give numbers from 0 to {categories - 1}"
        )


def _place_objects(
    n: int, n_tokens: int, categories: int, rho: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Label of each cell (image, token), and cell of each category (image, category); -1 is none of either."""
    home = rng.permutation(n_tokens)[:categories]
    present = rng.random((n, categories)) < PRESENT
    at_home = present & (rng.random((n, categories)) < rho)
    keys = rng.random((n, n_tokens))  # cells in a random order, those that an object at home has taken at the end
    keys[:, home] += at_home
    free = np.argsort(keys, axis=1)[:, :categories]
    cells = np.where(at_home, home, free)
    cells[~present] = -1
    labels = np.full((n, n_tokens), -1)
    image, category = np.nonzero(present)
    labels[image, cells[image, category]] = category
    return labels, cells


def _retinotopic(tokens: np.ndarray, grid: tuple[int, int], centres: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted features, weights (feature, unit), of tokens pooled by the Gaussian field of each unit."""
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    distance = (y - centres[:, :1]) ** 2 + (x - centres[:, 1:]) ** 2  # (unit, token)
    fields = np.exp(-distance / (2 * FIELD**2)) / (2 * np.pi * FIELD**2)
    return np.stack([(tokens @ w) @ field for w, field in zip(weights.T, fields, strict=True)], axis=1)
