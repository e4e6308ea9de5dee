"""Resampling of stimuli and subjects: how sure a comparison of representational geometries is."""

from .ceilings import weighted_ceilings
from .comparison import ModelComparison
from .dual import dual_variance
from .evaluation import compare_models
from .intervals import SCALES, Seed, basic_interval, percentile_interval
from .resampling import (
    bootstrap_comparison,
    bootstrap_similarities,
    permutation_comparison,
    permutation_p,
    permutation_similarities,
)
from .tests import bonferroni
from .weighted import resample_weights, weighted_similarities

__all__ = [
    "SCALES",
    "ModelComparison",
    "Seed",
    "basic_interval",
    "bonferroni",
    "bootstrap_comparison",
    "bootstrap_similarities",
    "compare_models",
    "dual_variance",
    "percentile_interval",
    "permutation_comparison",
    "permutation_p",
    "permutation_similarities",
    "resample_weights",
    "weighted_ceilings",
    "weighted_similarities",
]
