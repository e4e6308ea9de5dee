"""Compare the geometry of model layers with that of brain regions.

    python examples/rsa_layers_and_regions.py

Half a minute on two cores; writes rsa_report.html.
"""

from neuralign import align, datasets, encoders

brain = datasets.simulate.visual_cortex(n_stimuli=200, n_units=400, seed=2)
models = ["pixels", "gabor", "texture", "annotations", "resnet20-cifar-untrained"]
features = [encoders.extract(model, brain.stimuli) for model in models]

table = align.rsa(features, brain, rdm="correlation", compare="rho-a", bootstrap=300, permutations=300)
wide = table.pivot_table("score", ["model", "layer"], "region", sort=False)
print("Spearman rho-a of layer and region RDMs\n")
print(wide.round(3).to_string())
print("\nCeilings:", table.groupby("region", sort=False)["ceiling"].first().round(2).to_dict())

# Every step is also a function of its own.
v1 = align.rdm(brain.select(region="V1"), method="correlation")
gabor = align.rdm(features[1], method="correlation")
print("\ngabor and V1 by three comparisons:")
for method in ("pearson", "tau-a", "pearson-whitened"):
    print(f"  {method:16} {align.compare(gabor, v1, method=method)[0, 0]:.3f}")

# Between two thresholds of the ranks, and by distances that noise in the responses does not inflate.
for options in ({"topology": (0.2, 0.8)}, {"rdm": "crossnobis", "folds": "repeat"}):
    other = align.rsa(features, brain, compare="pearson", bootstrap=0, permutations=0, **options)
    best = other.loc[other.groupby("region", sort=False)["score"].idxmax()]
    print(f"\nbest layers by {other['formula'].iloc[0]}:")
    print(best[["region", "model", "layer", "score", "ceiling"]].round(3).to_string(index=False))

print("\nReport:", align.report(table, "rsa_report.html"))
