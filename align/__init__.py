"""How well models and brains agree, and how sure we are of it."""

from .ceiling import estimate_ncsnr, ncsnr_ceiling, split_half_ceiling
from .compare import compare, rsa_ceiling
from .encoding import score
from .rdm import rdm
from .report import report
from .results import load_results, save_results
from .rsa import rsa
from .score import Score

__all__ = [
    "Score",
    "compare",
    "estimate_ncsnr",
    "load_results",
    "ncsnr_ceiling",
    "rdm",
    "report",
    "rsa",
    "rsa_ceiling",
    "save_results",
    "score",
    "split_half_ceiling",
]
