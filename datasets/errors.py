"""How an error names what was found, what was expected and the mend."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(argument: str, found: object, known: Iterable[object], mend: str = "") -> str:
    """Message for a name that is not among the known ones, with the nearest of them first.

    Examples
    --------
    >>> unknown("region", "V3", ["V1", "V4"])
    "region='V3' is unknown; did you mean 'V1' or 'V4'? Known: 'V1', 'V4'."
    """
    names = [str(name) for name in known]
    near = get_close_matches(str(found), names, n=3, cutoff=0.5)
    message = f"{argument}={found!r} is unknown"
    if near:
        message += f"; did you mean {' or '.join(map(repr, near))}?"
    else:
        message += "."
    shown = ", ".join(map(repr, names[:20])) or "none"
    message += f" Known: {shown}{', ...' if len(names) > 20 else ''}."
    return f"{message} {mend}".rstrip()
