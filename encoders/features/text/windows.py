"""Which stretch of tokens a model reads for which word."""

from __future__ import annotations

import numpy as np


def windows(n: int, longest: int, stride: int) -> list[tuple[int, int, int]]:
    """Overlapping windows over a text, each token kept from exactly one of them.

    Parameters
    ----------
    n : int
        Tokens of the text.
    longest : int
        Tokens of a window.
    stride : int
        Tokens between the starts of windows, 1 to `longest`.

    Returns
    -------
    list of (start, stop, keep_from)
        The window reads tokens ``start`` to ``stop``; what it says of those from ``keep_from`` on is kept. Token t
        has a context of ``t - start + 1`` tokens, itself included: t + 1 within the first window, and from
        ``longest - stride + 1`` to ``longest`` in the others.
    """
    if not 1 <= stride <= longest:
        raise ValueError(f"stride={stride}; expected 1 to longest={longest}: a longer one would leave tokens out")
    found, kept = [], 0
    for start in range(0, n, stride):
        stop = min(start + longest, n)
        found.append((start, stop, kept))
        kept = stop
        if stop == n:
            break
    return found


def shared_windows(first: np.ndarray, last: np.ndarray, n: int, longest: int, least: int) -> np.ndarray:
    """The window of `windows` from which each word is kept, for models that read from left to right.

    Parameters
    ----------
    first, last : ndarray of int, shape (word,)
        Tokens of each word, none longer than `longest`.
    n : int
        Tokens of the text.
    longest, least : int
        Most and fewest tokens of context, the word's last token included, wherever the text has that many.

    Returns
    -------
    ndarray of int, shape (word, 2)
        Start and stop of the window of each word.

    Notes
    -----
    A word is kept from the window that keeps its last token. If that window starts within the word, or right at its
    beginning, where nothing would precede it, the word gets a window of its own that ends with it.
    """
    starts, stops, kept = np.array(windows(n, longest, longest - least + 1)).T
    of = np.searchsorted(kept, last, side="right") - 1
    spans = np.stack([starts[of], stops[of]], axis=1)
    cut = (spans[:, 0] > 0) & (first <= spans[:, 0])
    spans[cut] = _ending_with(last[cut], longest)
    return spans


def own_windows(first: np.ndarray, last: np.ndarray, n: int, longest: int, edge: str) -> np.ndarray:
    """A window for each word, for models that read in both directions.

    Parameters
    ----------
    first, last : ndarray of int, shape (word,)
    n, longest : int
        Tokens of the text and of a window.
    edge : {"right", "centre"}
        The window ends with the word, or has it in its middle (moved inwards at the ends of the text).

    Returns
    -------
    ndarray of int, shape (word, 2)
    """
    if edge == "right":
        return _ending_with(last, longest)
    start = np.clip((first + last + 1 - longest) // 2, 0, max(0, n - longest))
    return np.stack([start, np.minimum(start + longest, n)], axis=1)


def _ending_with(last: np.ndarray, longest: int) -> np.ndarray:
    return np.stack([np.maximum(last + 1 - longest, 0), last + 1], axis=1)
