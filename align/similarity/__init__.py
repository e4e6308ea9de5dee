"""Measures of how similar two representations of the same stimuli are, each with a card that states its properties."""

from .cards import SimilarityCard, card, estimator, measures, similarity

__all__ = ["SimilarityCard", "card", "estimator", "measures", "similarity"]
