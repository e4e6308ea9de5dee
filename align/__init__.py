"""How well models and brains agree, and how sure we are of it."""

from .bands import score_bands
from .best_layer import best_layer
from .ceiling import estimate_ncsnr, ncsnr_ceiling, split_half_ceiling
from .compare import compare, rsa_ceiling
from .discriminative import most_discriminative
from .encoding import score
from .explainable import (
    cc_max,
    cc_norm,
    explainable_variance,
    inter_subject_ceiling,
    signal_power,
    signal_power_explained,
)
from .guidance import guide
from .inference import ModelComparison, bonferroni, compare_models
from .multiple import cluster_p, fdr, grid_adjacency, max_statistic_p
from .noise import noise_covariance, noise_precision, repeat_residuals
from .objectives import objective
from .partition import variance_partition
from .permutation import PermutationTest, permutation_test
from .power import rsa_power
from .rdm import rdm
from .rdm_models import FixedRDM, InterpolatedRDM, SelectedRDM, WeightedRDM
from .report import report
from .results import load_results, save_results
from .rsa import model_comparison, rsa
from .schemes import block_shuffles, circular_shifts
from .score import Score
from .searchlight import Neighbourhoods, searchlight, surface_neighbours, volume_neighbours
from .selectivity import ascend, project_weights, rank_stimuli
from .similarity import SimilarityCard, similarity
from .similarity import card as similarity_card
from .similarity import estimator as similarity_estimator
from .similarity import measures as similarity_measures
from .time import rdm_over_time
from .topology import Identification, identify, persistence, rgdm, rgtm, rtd, rtd_rdms

__all__ = [
    "FixedRDM",
    "Identification",
    "InterpolatedRDM",
    "ModelComparison",
    "Neighbourhoods",
    "PermutationTest",
    "Score",
    "SelectedRDM",
    "SimilarityCard",
    "WeightedRDM",
    "ascend",
    "best_layer",
    "block_shuffles",
    "bonferroni",
    "cc_max",
    "cc_norm",
    "circular_shifts",
    "cluster_p",
    "compare",
    "compare_models",
    "estimate_ncsnr",
    "explainable_variance",
    "fdr",
    "grid_adjacency",
    "guide",
    "identify",
    "inter_subject_ceiling",
    "load_results",
    "max_statistic_p",
    "model_comparison",
    "most_discriminative",
    "ncsnr_ceiling",
    "noise_covariance",
    "noise_precision",
    "objective",
    "permutation_test",
    "persistence",
    "project_weights",
    "rank_stimuli",
    "rdm",
    "rdm_over_time",
    "repeat_residuals",
    "report",
    "rgdm",
    "rgtm",
    "rsa",
    "rsa_ceiling",
    "rsa_power",
    "rtd",
    "rtd_rdms",
    "save_results",
    "score",
    "score_bands",
    "searchlight",
    "signal_power",
    "signal_power_explained",
    "similarity",
    "similarity_card",
    "similarity_estimator",
    "similarity_measures",
    "split_half_ceiling",
    "surface_neighbours",
    "variance_partition",
    "volume_neighbours",
]
