"""RDMs as pictures, and stimuli as maps: in regions, in layers, and from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from ...datasets.rdms import RDMs
from .geometry import classical_mds, even_rows, evenly, onto, ranked
from .style import ACCENT, FAINT, INK, WIDTH, clip, styled


@styled
def rdm_gallery(rdms: RDMs, most_stimuli: int = 300) -> Figure:
    """RDMs as pictures, each turned into ranks between 0 and 1, so that only the order of its values shows.

    Parameters
    ----------
    rdms : RDMs
        The table has a column label and may have a column kind, by which "brain" is told from "model".
    most_stimuli : int
        Of more stimuli, this many are taken at even distances.
    """
    rdms = evenly(rdms, most_stimuli)
    kinds = rdms.table["kind"].tolist() if "kind" in rdms.table else [""] * len(rdms)
    brain = [k for k, kind in enumerate(kinds) if kind == "brain"]
    model = [k for k, kind in enumerate(kinds) if kind != "brain"]
    columns = len(rdms) if len(rdms) <= 4 else min(6, max(len(brain), -(-len(model) // 2), 3))
    # Brain and models begin on lines of their own, unless one line holds them all.
    lines = [brain + model] if len(rdms) <= columns else [*_lines(brain, columns), *_lines(model, columns)]
    side = min(2.4, (WIDTH - 1.0) / columns)
    fig = Figure(figsize=(side * columns + 1.0, len(lines) * (side + 0.32)), layout="constrained")
    axes = fig.subplots(len(lines), columns, squeeze=False)
    for row, line in enumerate(lines):
        for ax in axes[row, len(line) :]:
            ax.set_visible(False)
        for ax, k in zip(axes[row], line, strict=False):
            picture = ax.imshow(ranked(rdms[k]), cmap="viridis", vmin=0, vmax=1, interpolation="none")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            label = clip(str(rdms.table["label"].iloc[k]), int(side * 15)) or kinds[k]
            weight, colour = ("bold", ACCENT) if k in brain else ("normal", INK)
            ax.set_title(label, fontsize=8.5, pad=3, fontweight=weight, color=colour)
    bar = fig.colorbar(picture, ax=axes, fraction=0.02, pad=0.01, aspect=35, shrink=0.9, ticks=[0, 0.5, 1])
    bar.set_label("dissimilarity (rank)")
    bar.outline.set_visible(False)
    return fig


def _lines(items: list[int], length: int) -> list[list[int]]:
    return [items[start : start + length] for start in range(0, len(items), length)]


@styled
def stimulus_maps(
    pairs: Sequence[tuple[str, RDMs, str, RDMs]], thumbnails: np.ndarray | None = None, most_stimuli: int = 100
) -> Figure:
    """Stimuli in two dimensions, as a brain region and as a model layer arrange them.

    Parameters
    ----------
    pairs : sequence of (str, RDMs, str, RDMs)
        Per region its name and RDM, and the name and RDM of a layer, all over the same stimuli. The map of the
        layer is rotated and mirrored onto that of the region, and as wide.
    thumbnails : ndarray of uint8, shape (stimulus, height, width, 3), optional
        Pictures in the order of the stimuli; dots without them.
    most_stimuli : int
        Of more stimuli, this many are taken at even distances.
    """
    panels: list[_Panel] = []
    rows = even_rows(pairs[0][1].n_stimuli, most_stimuli)
    for region, brain, layer, model in pairs:
        place, share = classical_mds(evenly(brain, most_stimuli))
        other, other_share = classical_mds(evenly(model, most_stimuli))
        kept = np.isfinite(place[:, 0]) & np.isfinite(other[:, 0])
        place, other = place[kept], onto(other[kept], place[kept])
        pictures = None if thumbnails is None else thumbnails[rows][kept]
        panels.append(_Panel(region, place, share, pictures, ACCENT))
        panels.append(_Panel(layer, other, other_share, pictures, INK))
    return _maps(panels, columns=2 if len(pairs) == 1 else 4)


@styled
def layer_maps(
    steps: Sequence[tuple[str, RDMs]],
    thumbnails: np.ndarray | None = None,
    most_stimuli: int = 100,
    brain: Sequence[str] = (),
) -> Figure:
    """Stimuli in two dimensions, from layer to layer: what a stage moves shows as a change of place.

    Parameters
    ----------
    steps : sequence of (str, RDMs)
        Names and RDMs, one each, over the same stimuli. Every map is rotated and mirrored onto the one before
        (orthogonal Procrustes), and as wide: turns and mirror images, which an RDM leaves open, do not show.
    thumbnails : ndarray of uint8, shape (stimulus, height, width, 3), optional
        Pictures in the order of the stimuli; dots without them.
    most_stimuli : int
        Of more stimuli, this many are taken at even distances.
    brain : sequence of str
        Names of the steps that are regions, which are drawn in blue.
    """
    found = [classical_mds(evenly(rdm, most_stimuli)) for _, rdm in steps]
    kept = np.all([np.isfinite(place[:, 0]) for place, _ in found], axis=0)
    pictures = None
    if thumbnails is not None:
        pictures = thumbnails[even_rows(steps[0][1].n_stimuli, most_stimuli)][kept]
    panels: list[_Panel] = []
    for (name, _), (place, share) in zip(steps, found, strict=True):
        place = onto(place[kept], panels[-1].points) if panels else place[kept]
        panels.append(_Panel(name, place, share, pictures, ACCENT if name in brain else INK))
    return _maps(panels, columns=min(4, len(panels)))


@dataclass(frozen=True)
class _Panel:
    """One map: places (stimulus, 2), the share of the structure that they show, and pictures or None for dots."""

    name: str
    points: np.ndarray
    share: float
    pictures: np.ndarray | None
    colour: str


def _maps(panels: Sequence[_Panel], columns: int) -> Figure:
    # Panels are as flat as the flattest shape that holds every map, since distances must not be stretched.
    flat = max((np.abs(one.points).max(0, initial=1e-9) for one in panels), key=lambda xy: xy[1] / xy[0])
    aspect = float(np.clip(flat[1] / flat[0] + 0.1, 0.55, 1.0))
    rows = -(-len(panels) // columns)
    side = WIDTH / max(columns, 2)
    fig = Figure(figsize=(side * columns, rows * (side * aspect + 0.4)), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax, one in zip(axes, panels, strict=False):
        _draw_map(ax, one.points, one.pictures, side, aspect)
        ax.set_title(clip(one.name, int(side * 13)), fontsize=9, color=one.colour, pad=4)
        if np.isfinite(one.share):
            ax.set_xlabel(f"{100 * one.share:.0f} % of the structure", fontsize=7.5, labelpad=3)
    return fig


def _draw_map(ax: Axes, points: np.ndarray, pictures: np.ndarray | None, side: float, aspect: float) -> None:
    if pictures is None:
        ax.scatter(points[:, 0], points[:, 1], s=14, color=ACCENT, alpha=0.6, lw=0)
    else:
        wanted = side * 72 * (0.09 if len(points) <= 60 else 0.07)  # points of the page
        for point, picture in zip(points, pictures, strict=True):
            image = OffsetImage(picture, zoom=wanted / picture.shape[0], interpolation="antialiased")
            ax.add_artist(AnnotationBbox(image, tuple(point), frameon=False, pad=0))
    across, up = np.abs(points).max(0, initial=1e-9)
    reach = 1.12 * max(across, up / aspect)
    ax.set(xlim=(-reach, reach), ylim=(-aspect * reach, aspect * reach), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set(visible=True, color=FAINT)
