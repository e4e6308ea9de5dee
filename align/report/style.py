"""Colours, type and settings that the figures share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb

WIDTH = 10.4  # inches; the column of the page
INK, MUTED, FAINT, BAND, ACCENT = "#1c2329", "#66717c", "#e1e5e9", "#ccd2d8", "#1f6391"
SCORES = LinearSegmentedColormap.from_list("scores", ["#f4f7f9", "#d6e4ee", "#a3c6dd", "#5c98c1", "#195480"])
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",  # text in the reader's own fonts
    "svg.hashsalt": "neuralign",  # the same figure is the same file
}
Figured = TypeVar("Figured", bound=Callable[..., Any])


def styled(function: Figured) -> Figured:
    """Run with the style of the report and leave the caller's settings as they were."""

    @functools.wraps(function)
    def in_style(*args: Any, **kwargs: Any) -> Any:
        with mpl.rc_context(STYLE):
            return function(*args, **kwargs)

    return in_style  # type: ignore[return-value]


def ink_on(colour: Any) -> str:
    """White or ink, whichever stands out more from a colour (its relative luminance as WCAG defines it)."""
    channels = np.asarray(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return "white" if linear @ [0.2126, 0.7152, 0.0722] < 0.2 else INK


def clip(text: str, most: int) -> str:
    """`text` in at most `most` characters, with its middle left out: layers differ at the end of their names."""
    if len(text) <= most:
        return text
    return text[: (most - 1) // 2] + "…" + text[len(text) - most // 2 :]
