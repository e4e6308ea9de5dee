"""Engines of dissimilarities and of their comparison, on plain arrays."""
