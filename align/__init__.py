"""How well models and brains agree, and how sure we are of it."""

from .bands import score_bands
from .best_layer import best_layer
from .ceiling import estimate_ncsnr, ncsnr_ceiling, split_half_ceiling
from .compare import compare, rsa_ceiling
from .encoding import score
from .explainable import (
    cc_max,
    cc_norm,
    explainable_variance,
    inter_subject_ceiling,
    signal_power,
    signal_power_explained,
)
from .multiple import cluster_p, fdr, grid_adjacency, max_statistic_p
from .partition import variance_partition
from .permutation import PermutationTest, permutation_test
from .rdm import rdm
from .report import report
from .results import load_results, save_results
from .rsa import rsa
from .schemes import block_shuffles, circular_shifts
from .score import Score

__all__ = [
    "PermutationTest",
    "Score",
    "best_layer",
    "block_shuffles",
    "cc_max",
    "cc_norm",
    "circular_shifts",
    "cluster_p",
    "compare",
    "estimate_ncsnr",
    "explainable_variance",
    "fdr",
    "grid_adjacency",
    "inter_subject_ceiling",
    "load_results",
    "max_statistic_p",
    "ncsnr_ceiling",
    "permutation_test",
    "rdm",
    "report",
    "rsa",
    "rsa_ceiling",
    "save_results",
    "score",
    "score_bands",
    "signal_power",
    "signal_power_explained",
    "split_half_ceiling",
    "variance_partition",
]
