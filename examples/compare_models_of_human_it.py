"""Which models of human inferior temporal cortex can be told apart, and over what.

    NEURALIGN_DATA=... python examples/compare_models_of_human_it.py

Four subjects, 92 images, the eight model RDMs of Kriegeskorte et al. (2008), and a weighted sum of them that is fitted
to some stimuli and subjects and scored on others. Fifteen seconds on one core; writes human_it_report.html.
"""

import sys

from neuralign import align, datasets
from neuralign.align.rdm_models import WeightedRDM
from neuralign.align.rsa import model_comparison

try:
    brain = datasets.load("kriegeskorte-92")
except FileNotFoundError as reason:
    print(f"skipped: {reason}")
    sys.exit()
models = datasets.load("kriegeskorte-92", source="models")

# For these four subjects, and for other subjects too: an interval says what it is over.
for over in ("stimuli", "both"):
    found = model_comparison(models, brain, compare="spearman", over=over, bootstrap=1000)
    pairs = found.pairwise("fdr")
    print(f"over {over}: {(pairs['p_corrected'] <= 0.05).sum()} of {len(pairs)} pairs told apart\n")
    print(found.to_frame()[["model", "score", "ci_low", "ci_high"]].round(3).to_string(index=False), "\n")

# Flexible models are cross-validated, and all others with them: in-sample, a sum of eight would always win.
mixed = model_comparison(
    [models, WeightedRDM(models, name="weighted sum")], brain, compare="pearson", over="both", bootstrap=200
)
print(mixed.summary(), "\n")

# What is left of the match when only pairs between two thresholds count. Of a model with two values there may be none:
# a warning says so, and its score is NaN.
for lower, upper in ((0.0, 1.0), (0.2, 0.8), (0.4, 0.6), (0.0, 0.2)):
    table = align.rsa(models, brain, compare="pearson", topology=(lower, upper), bootstrap=0, permutations=0)
    best = table.loc[table["score"].idxmax()]
    ceiling = f"ceiling {best['ceiling_low']:.3f} to {best['ceiling']:.3f}"
    print(f"thresholds {lower:.1f} to {upper:.1f}: {best['model']:8} {best['score']:.3f}, {ceiling}")

table = align.rsa(models, brain, compare="spearman", over="both")
print("\nReport:", align.report([table, mixed], "human_it_report.html"))
