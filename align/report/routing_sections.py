"""The section of a page about routing maps, and its sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scipy.stats import binomtest

from . import routing_figures
from .geometry import even_rows
from .parts import Picture, Section, picture
from .rdm_sections import Evidences
from .summary import percent

if TYPE_CHECKING:
    from ...encoders.routing.maps import RoutingMaps

MOST_DRAWN = 8  # queries over stimuli
MOST_QUERIES = 40  # in the other figures
MOST_SENTENCES = 12
STIMULI = 6


def routing_section(evidence: Evidences) -> Section | None:
    """Attention over stimuli, on objects, on average, and from query to query."""
    found = [maps for _, one in evidence if (maps := one.routing) is not None and maps.n_cells > 1]
    if not found:
        return None
    if len(found) == 1:
        return Section("Routing maps", _pictures(found[0]))
    titles = [maps.name or f"maps {k}" for k, maps in enumerate(found, 1)]
    return Section("Routing maps", parts=[Section(t, _pictures(maps)) for t, maps in zip(titles, found, strict=True)])


def routing_lede(maps: RoutingMaps) -> str:
    """What the maps are of, in one sentence."""
    height, width = maps.weights.shape[3:]
    cells = f"{width} tokens" if maps.grid is None else f"{height} x {width} places"
    queries = f"{len(maps.queries)} {'query' if len(maps.queries) == 1 else 'queries'}"
    stimuli = "one stimulus" if len(maps) == 1 else f"{len(maps)} stimuli"
    return f"Attention of {queries} ({_listed(maps.queries)}) over the {cells} of {stimuli}."


def routing_headlines(maps: RoutingMaps) -> list[str]:
    """One sentence per query: the category that its peak is on most often, or that it is on none beyond chance.

    Beyond chance: a binomial test against that of the same maps over stimuli at random, corrected for the number of
    pairs of query and category (Bonferroni), at 5 %; that chances differ between stimuli makes it err on the safe
    side. Of more than twelve queries, one sentence that counts them.
    """
    if maps.objects is None or maps.grid is None or not len(maps.objects) or "category" not in maps.objects:
        return []
    found = maps.on_objects()
    sentences, peaks = [], []
    for query, rows in found.groupby("query", sort=False):
        best = rows.iloc[int((rows["hits"] - rows["hits_by_chance"]).argmax())]
        n, chance = int(best["n_stimuli"]), float(best["hits_by_chance"])
        tested = binomtest(round(best["hits"] * n), n, min(chance, 1.0), alternative="greater")
        beyond = tested.pvalue * len(found) < 0.05
        said = f"on the {best['category']} in {percent(best['hits'])} of the {n} stimuli that hold one, by chance in "
        said += percent(chance)
        none = f"on no category beyond chance (at most {said})"
        sentences.append(f"{query}: attention peaks {said if beyond else none}.")
        peaks += [best["category"]] if beyond else []
    if len(sentences) <= MOST_SENTENCES:
        return sentences
    counted = f"Attention peaks on objects of a category beyond chance for {len(peaks)} of {len(sentences)} queries"
    each = ", ".join(f"{name} {peaks.count(name)}" for name in dict.fromkeys(peaks))
    return [f"{counted}{': ' if each else ''}{each}."]


def _pictures(maps: RoutingMaps) -> list[Picture]:
    pictures = []
    drawn, compared = _shown(maps.queries, MOST_DRAWN), _shown(maps.queries, MOST_QUERIES)
    if maps.grid is not None:
        stimuli = [maps.stimulus_ids[row] for row in even_rows(len(maps), STIMULI)]
        pictures.append(_overlays(maps, drawn, stimuli))
        objects = _on_objects(maps, compared)
        pictures += [] if objects is None else [objects]
        pictures.append(_means(maps, drawn))
    pictures.append(_queries(maps, compared))
    return pictures


def _overlays(maps: RoutingMaps, queries: list[str], stimuli: list[str]) -> Picture:
    caption = (
        "Which places each query (row) reads for its responses, in multiples of what even attention would give them"
        f"{_heads(maps)}; places without colour get no more than that. Cross: the highest cell."
    )
    if maps.objects is not None:
        caption += " Frames: the objects."
    if len(stimuli) < len(maps):
        caption += f" {len(stimuli)} of {len(maps)} stimuli, taken at even distances."
    caption += _few(queries, maps)
    alt = f"Attention of {_listed(queries)} over the stimuli {_listed(stimuli)}."
    return picture(routing_figures.routing_overlays(maps, queries, stimuli), alt, caption, "png")


def _on_objects(maps: RoutingMaps, queries: list[str]) -> Picture | None:
    if maps.objects is None or not len(maps.objects) or "category" not in maps.objects:
        return None
    found = maps.select(queries).on_objects()
    if not len(found):
        return None
    held = dict(zip(found["category"], found["n_stimuli"], strict=True))
    caption = (
        "Left: share of the stimuli with an object of a category where the map of a query is highest on it. Right: "
        "share of the attention that falls on it. Small type: the same maps laid over stimuli at random; framed: more "
        f"than twice that. Stimuli: {', '.join(f'{name} {n}' for name, n in held.items())}.{_few(queries, maps)}"
    )
    top = found.loc[found.groupby("query", sort=False)["hits"].idxmax()]
    said = "; ".join(
        f"{query} on the {category} {percent(hits)}"
        for query, category, hits in top[["query", "category", "hits"]].itertuples(index=False, name=None)
    )
    return picture(
        routing_figures.object_grids(found), f"How often attention peaks on objects. Highest: {said}.", caption
    )


def _means(maps: RoutingMaps, queries: list[str]) -> Picture:
    caption = (
        f"The mean map of each query over all {len(maps)} stimuli: what attention owes to places, and to where its "
        f"content tends to be.{_few(queries, maps)}"
    )
    return picture(routing_figures.mean_maps(maps, queries), f"Mean maps of {_listed(queries)}.", caption)


def _queries(maps: RoutingMaps, queries: list[str]) -> Picture:
    chosen = maps.select(queries)
    caption = (
        "Left: correlation between the maps of two queries over all places of all stimuli; hatched where maps are even."
        " Middle: entropy of the maps as a share of that of even attention, median (dot) and middle half of the stimuli"
        f"{'' if maps.reduced or maps.n_heads == 1 else ', mean over heads'}. Right: the part of the maps' distance "
        f"from even attention that is not in their mean: 0 is a fixed mask.{_few(queries, maps)}"
    )
    entropy = chosen.entropy(normalised=True).median()
    said = "; ".join(f"{query} {value:.2f}" for query, value in entropy.items())
    return picture(
        routing_figures.query_panels(maps, queries), f"Similarity of queries, and their entropy: {said}.", caption
    )


def _heads(maps: RoutingMaps) -> str:
    return "" if maps.n_heads == 1 and not maps.reduced else ", mean over heads"


def _few(queries: Sequence[str], maps: RoutingMaps) -> str:
    """That some queries only are shown."""
    total = len(maps.queries)
    return f" {len(queries)} of {total} queries, at even distances." if len(queries) < total else ""


def _shown(queries: Sequence[str], most: int) -> list[str]:
    return [queries[k] for k in even_rows(len(queries), most)]


def _listed(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
