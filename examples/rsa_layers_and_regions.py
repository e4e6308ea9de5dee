"""Compare the geometry of model layers with that of brain regions.

    python examples/rsa_layers_and_regions.py

Twenty seconds on two cores; writes rsa_report.html.
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
for method in ("pearson", "spearman", "tau-a"):
    print(f"  {method:9} {align.compare(gabor, v1, method=method)[0, 0]:.3f}")

print("\nReport:", align.report(table, "rsa_report.html"))
