"""Topological RSA: thresholds, geodesics and persistent homology of RDMs."""

from .geodesic import rgdm
from .identification import Identification, descriptor_type, identify, threshold_grid
from .paths import percolates, shortest_paths
from .persistence import persistence, rtd, rtd_rdms
from .transforms import rgtm

__all__ = [
    "Identification",
    "descriptor_type",
    "identify",
    "percolates",
    "persistence",
    "rgdm",
    "rgtm",
    "rtd",
    "rtd_rdms",
    "shortest_paths",
    "threshold_grid",
]
