"""The nearest class mean of every RDM with its subject left out, from inner products of RDMs alone."""

from __future__ import annotations

import numpy as np

TIED = 1e-12  # difference of two squared distances, relative to the spread of the RDMs, that is rounding


def inner_products(values: np.ndarray, counts: np.ndarray, rule: str) -> np.ndarray:
    """Inner products over the pairs known in all RDMs, each as often as it was drawn; NaN with fewer than three pairs.

    What is subtracted first does not change the rule and keeps digits: the mean over RDMs for distances between them,
    the mean over pairs for correlations.
    """
    complete = ~np.isnan(values).any(0)
    if complete.sum() < 3:
        return np.full((len(values), len(values)), np.nan)
    values, counts = values[:, complete], counts[complete]
    shift = values.mean(0) if rule == "centroid" else (values @ counts / counts.sum())[:, None]
    values = values - shift
    return (values * counts) @ values.T


def assigned(gram: np.ndarray, items: np.ndarray, copies: np.ndarray, rule: str) -> np.ndarray:
    """Share (subject, class, class) in which the RDM of a subject and class is assigned to each class.

    NaN where the subject has no such RDM or was not drawn, and where no other subject has one. The means leave the
    subject out with all its `copies` (subject,); everything follows from inner products of RDMs and sums of these over
    classes.
    """
    subjects, classes = items.shape
    credit = np.full((subjects, classes, classes), np.nan)
    if np.isnan(gram).any():
        return credit
    there = items >= 0
    weight = np.where(there, copies[:, None], 0).astype(float)  # (subject, class)
    members = np.zeros((len(gram), classes))
    s, c = np.nonzero(there)
    members[items[s, c], c] = weight[s, c]
    to_class = gram @ members  # (rdm, class): sum of inner products with the members
    within = np.einsum("rc,rc->c", members, to_class)
    own = np.where(there, items, 0)
    size = weight.sum(0) - weight  # (left-out subject, class)
    out_self = np.where(there, gram[own, own], 0.0)
    out_class = np.where(there, to_class[own, np.arange(classes)], 0.0)
    squared = within - 2 * weight * out_class + weight**2 * out_self  # of the sum of the remaining members
    # (subject, class of the RDM, candidate class)
    cross = to_class[own] - weight[:, None, :] * gram[own[:, :, None], own[:, None, :]]
    scale = np.trace(gram) / len(gram)
    with np.errstate(invalid="ignore", divide="ignore"):
        if rule == "centroid":
            score = 2 * cross / size[:, None, :] - (squared / size**2)[:, None, :]
        else:  # but for a factor that the candidates share
            norm = np.sqrt(np.maximum(squared, 0))[:, None, :]
            score = np.where(norm > np.sqrt(TIED * scale), np.sqrt(scale) * cross / norm, 0.0)
    score = np.where(size[:, None, :] > 0, score, -np.inf)
    near = score >= score.max(-1, keepdims=True) - TIED * scale
    valid = (weight > 0) & (size > 0)
    credit[valid] = (near / near.sum(-1, keepdims=True))[valid]
    return credit


def accuracy_of(credit: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Share of RDMs assigned to their own class, (...); NaN where there is none to judge."""
    right = np.diagonal(credit, axis1=-2, axis2=-1)  # (..., subject, class)
    weight = np.where(np.isnan(right), 0, copies[:, None])
    total = weight.sum((-2, -1))
    hits = (np.nan_to_num(right) * weight).sum((-2, -1))
    return np.divide(hits, total, out=np.full(np.shape(total), np.nan), where=total > 0)


def shuffled_within(items: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Items with the classes that a subject has shuffled among its RDMs."""
    shuffled = items.copy()
    for row in shuffled:
        row[row >= 0] = rng.permutation(row[row >= 0])
    return shuffled
