import warnings

import numpy as np
import pandas as pd
import pytest

from neuralign.align.compare import compare, rsa_ceiling
from neuralign.align.inference import percentile_interval
from neuralign.align.rdm import rdm
from neuralign.align.rsa import rsa, thumbnails
from neuralign.align.score import COLUMNS
from neuralign.datasets.rdms import RDMs
from neuralign.datasets.recording import Recording

IDS = [f"s{k}" for k in range(14)]
QUICK = {"bootstrap": 20, "permutations": 20}


class Layers:
    """Stand-in for Features: more stimuli than the brain saw, in another order."""

    def __init__(self, model, latent, seed=0):
        rng = np.random.default_rng(seed)
        self.model = model
        self.layers = ["early", "late"]
        ids = [*IDS, "unseen-1", "unseen-2"]
        order = rng.permutation(len(ids))
        self.stimulus_ids = [ids[k] for k in order]
        latent = np.concatenate([latent, rng.normal(size=(2, latent.shape[1]))])[order]
        self.arrays = {
            "early": rng.normal(size=(len(ids), 3, 4)),
            "late": latent @ rng.normal(size=(latent.shape[1], 30)),
        }

    def __getitem__(self, layer):
        return self.arrays[layer]

    def aligned(self, layer):
        rows = [self.stimulus_ids.index(name) for name in IDS]
        return self.arrays[layer][rows].reshape(len(IDS), -1)


@pytest.fixture
def latent():
    return np.random.default_rng(5).normal(size=(len(IDS), 4))


def recording(latent, subjects=("A", "B"), n_repeats=3, noise=1.0, seed=1):
    """Two regions per subject, presentations in random order; region V1 does not know the latents."""
    rng = np.random.default_rng(seed)
    presentations = pd.DataFrame({"stimulus": rng.permutation(np.repeat(IDS, n_repeats))})
    row = presentations["stimulus"].map(IDS.index).to_numpy()
    units, blocks = [], []
    for subject in subjects:
        for region, basis in (("V1", rng.normal(size=(len(IDS), 4))), ("IT", latent)):
            signal = (basis @ rng.normal(size=(4, 20)))[row]
            blocks.append(signal + noise * rng.normal(size=signal.shape))
            units += [{"subject": subject, "region": region, "hemisphere": "L"}] * 20
    return Recording(np.concatenate(blocks, axis=1), presentations, pd.DataFrame(units), name="toy")


def test_group_of_subjects(latent):
    features, brain = Layers("net", latent), recording(latent)
    table = rsa(features, brain, seed=3, bootstrap=50, permutations=50)
    assert table.columns.tolist() == COLUMNS
    assert table[["layer", "region"]].to_numpy().tolist() == [
        ["early", "V1"],
        ["late", "V1"],
        ["early", "IT"],
        ["late", "IT"],
    ]
    assert (table["subject"] == "group of 2").all() and (table["dataset"] == "toy").all()
    assert (table["n_units"] == 40).all() and (table["n_stimuli"] == 14).all() and (table["seed"] == 3).all()

    brain_rdms = rdm(brain).select(region="IT").reorder(IDS)
    for layer in features.layers:
        row = table.query("region == 'IT' and layer == @layer").iloc[0]
        model = rdm(features.aligned(layer)).vectors
        assert row["score"] == pytest.approx(compare(model, brain_rdms.vectors)[0].mean(), rel=1e-9)
        assert (row["ceiling_low"], row["ceiling"]) == pytest.approx(rsa_ceiling(brain_rdms))
        assert row["normalised"] == pytest.approx(row["score"] / row["ceiling"])
        assert row["ci_low"] < row["score"] < row["ci_high"]
    late = table.query("region == 'IT' and layer == 'late'").iloc[0]
    assert late["score"] > 0.7 and late["p"] == pytest.approx(1 / 51)
    assert late["formula"] == (
        "rsa-correlation-rho-a-1: mean over subjects; ci: bootstrap over stimuli; p: stimulus-label permutation"
    )


def test_same_seed_same_table(latent):
    features, brain = Layers("net", latent), recording(latent, subjects=["A"])
    pd.testing.assert_frame_equal(rsa(features, brain, **QUICK), rsa(features, brain, **QUICK))
    other = rsa(features, brain, seed=1, **QUICK)
    assert not other[["ci_low", "ceiling"]].equals(rsa(features, brain, **QUICK)[["ci_low", "ceiling"]])


def test_interval_does_not_depend_on_permutations(latent):
    features, brain = Layers("net", latent), recording(latent)
    without = rsa(features, brain, bootstrap=20, permutations=0)
    np.testing.assert_array_equal(without["ci_low"], rsa(features, brain, **QUICK)["ci_low"])
    assert without["p"].isna().all() and "permutation" not in without["formula"][0]
    assert rsa(features, brain, bootstrap=0, permutations=5)["ci_low"].isna().all()


def test_single_subject_has_a_split_half_ceiling(latent):
    table = rsa(Layers("net", latent), recording(latent, subjects=["A"]), **QUICK)
    assert (table["subject"] == "A").all() and table["ceiling_low"].isna().all()
    assert table["ceiling"].between(0.5, 1).all()
    noisy = rsa(Layers("net", latent), recording(latent, subjects=["A"], noise=6.0), **QUICK)
    assert (noisy["ceiling"].fillna(0) < table["ceiling"]).all()


def test_single_subject_in_one_region_of_several(latent):
    """Subject B lacks V1: that region falls back on the repeats of A."""
    brain = recording(latent)
    kept = ~((brain.units["subject"] == "B") & (brain.units["region"] == "V1")).to_numpy()
    part = Recording(brain.responses[:, kept], brain.presentations, brain.units[kept])
    table = rsa(Layers("net", latent), part, **QUICK).drop_duplicates("region").set_index("region")
    assert table["subject"].to_dict() == {"V1": "A", "IT": "group of 2"}
    assert table["ceiling"].between(0.3, 1).all() and table["n_units"].to_dict() == {"V1": 20, "IT": 40}


def test_without_repeats_there_is_no_ceiling(latent):
    table = rsa(Layers("net", latent), recording(latent, subjects=["A"], n_repeats=1), **QUICK)
    assert table["ceiling"].isna().all() and table["score"].notna().all()


def test_by_another_column(latent):
    table = rsa(Layers("net", latent), recording(latent), by="hemisphere", **QUICK)
    assert table["region"].unique().tolist() == ["L"]
    with pytest.raises(ValueError, match="by='hemisfere' is unknown; did you mean 'hemisphere'"):
        rsa(Layers("net", latent), recording(latent), by="hemisfere")


def brain_rdms(latent, **columns):
    rng = np.random.default_rng(0)
    patterns = [latent + rng.normal(size=latent.shape) for _ in range(4)]
    return RDMs(np.concatenate([rdm(X).vectors for X in patterns]), IDS, pd.DataFrame(columns), method="correlation")


def test_sessions_are_averaged_before_subjects(latent):
    brain = brain_rdms(latent, subject=["A", "A", "A", "B"], session=[1, 2, 3, 1])
    features = Layers("net", latent)
    table = rsa(features, brain, compare="pearson", **QUICK)
    subjects = np.stack([brain.vectors[:3].mean(0), brain.vectors[3]])
    expected = compare(rdm(features.aligned("late")).vectors, subjects, "pearson").mean()
    assert table["score"][1] == pytest.approx(expected, rel=1e-9)
    assert (table["ceiling_low"][1], table["ceiling"][1]) == pytest.approx(rsa_ceiling(subjects, "pearson"))
    assert (table["subject"] == "group of 2").all() and (table["n_units"] == 0).all()


def test_rdms_without_subjects_are_replicates(latent):
    table = rsa(Layers("net", latent), brain_rdms(latent, session=[1, 2, 3, 4]), **QUICK)
    assert table["subject"].tolist() == ["group of 4"] * 2 and table["region"].tolist() == ["", ""]


def test_one_rdm_per_region(latent):
    brain = brain_rdms(latent, region=list("abcd"), label=list("wxyz"))
    table = rsa(Layers("net", latent), brain, **QUICK)
    assert table["region"].tolist() == list("aabbccdd") and table["subject"].tolist() == list("wwxxyyzz")
    assert table["ceiling"].isna().all()
    with pytest.raises(ValueError, match="by='area'"):
        rsa(Layers("net", latent), brain, by="area")


def test_several_models_and_evidence(latent):
    hypothesis = RDMs(rdm(latent).vectors, IDS, pd.DataFrame({"label": ["latent"]})).reorder(IDS[::-1])
    models = [Layers("net", latent), Layers("other", latent, seed=2), hypothesis]
    table = rsa(models, recording(latent), **QUICK)
    assert table["model"].tolist() == ["net", "net", "other", "other", "latent"] * 2
    evidence = table.attrs["evidence"]
    assert evidence.rdms.table["kind"].tolist() == ["model"] * 5 + ["brain"] * 4
    assert evidence.rdms.table["label"].tolist() == [
        "net early",
        "net late",
        "other early",
        "other late",
        "latent",
        "V1 A",
        "IT A",
        "V1 B",
        "IT B",
    ]
    assert {"kind", "model", "layer", "region", "subject", "label"} <= set(evidence.rdms.table)
    assert evidence.thumbnails is None
    options = evidence.provenance["options"]
    assert options["compare"] == "rho-a" and options["bootstrap"] == 20 and options["seed"] == 0


def test_missing_stimuli(latent):
    features = Layers("net", latent)
    features.stimulus_ids = [name.replace("s1", "t1") for name in features.stimulus_ids]
    with pytest.raises(ValueError, match=r"5 of 14 stimulus ids are not in the features of 'net': 's1"):
        rsa(features, recording(latent).select(stimulus=IDS), **QUICK)


def test_unscorable_rows_are_nan_with_a_warning(latent):
    """A layer that is silent for all stimuli has no RDM, and its score no value."""
    features = Layers("net", latent)
    features.arrays["early"] = np.zeros((16, 5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = rsa(features, recording(latent), **QUICK)
    assert [str(one.message)[:17] for one in caught] == ["14 of 28 patterns", "4 of 8 comparison"]
    assert table["score"].isna().tolist() == [True, False] * 2
    assert table["p"].isna().tolist() == table["ci_low"].isna().tolist() == [True, False] * 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rdm": "pearson"}, "rdm='pearson' is unknown"),
        ({"compare": "correlation"}, "compare='correlation' is unknown"),
        ({"bootstrap": -1}, "bootstrap=-1"),
        ({"features": np.ones((14, 3))}, "features is a ndarray"),
        ({"features": []}, "empty list"),
        ({"brain": np.ones((14, 3))}, "brain is a ndarray; expected a Recording or RDMs"),
    ],
)
def test_bad_input(latent, change, message):
    arguments = {"features": Layers("net", latent), "brain": recording(latent)} | change
    with pytest.raises(ValueError, match=message):
        rsa(**arguments)


def test_five_stimuli():
    """Ten pairs are enough for a score; p cannot be small with 120 shuffles, but is valid."""
    rng = np.random.default_rng(0)
    ids = list("abcde")
    model, brain = (RDMs(rdm(rng.normal(size=(5, 20))).vectors, ids) for _ in range(2))
    with pytest.warns(UserWarning, match="resamples have no value"):
        row = rsa(model, brain, bootstrap=400, permutations=100).iloc[0]
    assert np.isfinite([row["score"], row["ci_low"], row["ci_high"]]).all() and 0 < row["p"] <= 1


def test_thumbnails():
    class Pictures:
        kind = "image"

        def images(self, ids=None, size=None):
            return np.full((len(ids), size, size, 3), int(ids[0]), np.uint8)

    assert thumbnails(Pictures(), ["7", "8"]).shape == (2, 48, 48, 3)
    assert thumbnails(Pictures(), ["7", "8"], size=4)[0, 0, 0, 0] == 7
    assert thumbnails(Pictures(), ["7"] * 1001) is None
    assert thumbnails(None, ["7"]) is None


def test_interval_of_nothing():
    low, high = percentile_interval(np.empty((0, 2)))
    assert np.isnan(low).all() and np.isnan(high).all()


def test_units_without_responses_are_counted_and_not_in_the_rdm():
    from neuralign.datasets import Recording

    rng = np.random.default_rng(0)
    responses = rng.standard_normal((14, 6))
    responses[:, 2] = np.nan
    units = pd.DataFrame({"region": ["V1"] * 3 + ["IT"] * 3})
    brain = Recording(responses, pd.DataFrame({"stimulus": IDS}), units)
    with pytest.warns(UserWarning, match="1 of 6 units lack responses; the RDMs are without them"):
        table = rsa(Layers("net", rng.standard_normal((14, 5))), brain, **QUICK)
    assert table.groupby("region")["n_units"].first().to_dict() == {"V1": 2, "IT": 3}
    alone = Recording(responses[:, :2], brain.presentations, units[:2])
    assert rsa(Layers("net", rng.standard_normal((14, 5))), alone, **QUICK)["score"].notna().all()


def test_an_unknown_method_is_named_by_the_argument_that_held_it():
    brain = RDMs(np.random.default_rng(0).uniform(size=(2, 91)), IDS)
    with pytest.raises(ValueError, match="compare='spearmn' is unknown; did you mean 'spearman'"):
        rsa(brain, brain, compare="spearmn")
    with pytest.raises(ValueError, match="rdm='corelation' is unknown; did you mean 'correlation'"):
        rsa(brain, brain, rdm="corelation")
