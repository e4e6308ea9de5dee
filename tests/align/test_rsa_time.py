"""RSA over time."""

import numpy as np
import pandas as pd
import pytest

from neuralign.align import load_results, report, save_results
from neuralign.align.compare import compare, rsa_ceiling
from neuralign.align.report.summary import at_peak, averaged, best_layers, headlines, is_timed
from neuralign.align.rsa import model_comparison, rsa
from neuralign.align.time import rdm_over_time
from neuralign.datasets.rdms import RDMs
from neuralign.datasets.recording import Recording
from neuralign.tables import readable

IDS = [f"s{k:02d}" for k in range(14)]
TIMES = np.round(np.arange(-0.1, 0.3, 0.02), 3)
PEAKS = {"V1": 0.09, "IT": 0.19}
NONE = {"bootstrap": 0, "permutations": 0}


@pytest.fixture(scope="module")
def latent():
    return np.random.default_rng(5).normal(size=(len(IDS), 4))


@pytest.fixture(scope="module")
def models(latent):
    rng = np.random.default_rng(0)
    patterns = {"early": rng.normal(size=(len(IDS), 20)), "late": latent @ rng.normal(size=(4, 30))}
    table = pd.DataFrame({"model": "net", "layer": list(patterns)})
    vectors = [1 - np.corrcoef(one)[np.triu_indices(len(IDS), 1)] for one in patterns.values()]
    return RDMs(np.stack(vectors), IDS, table, "correlation")


@pytest.fixture(scope="module")
def brain(latent):
    return recording(latent)


def recording(latent, subjects=("A", "B", "C"), n_repeats=4, seed=1):
    """The latents appear in V1 around 90 ms and in IT around 190 ms."""
    rng = np.random.default_rng(seed)
    presentations = pd.DataFrame({"stimulus": IDS * n_repeats, "run": np.repeat(np.arange(n_repeats), len(IDS))})
    blocks, units = [], []
    for subject in subjects:
        for region, peak in PEAKS.items():
            signal = np.tile(latent @ rng.normal(size=(4, 15)), (n_repeats, 1))
            course = np.exp(-(((TIMES - peak) / 0.03) ** 2))
            blocks.append(signal[:, :, None] * course + rng.normal(size=(*signal.shape, len(TIMES))))
            units += [{"subject": subject, "region": region}] * 15
    return Recording(np.concatenate(blocks, axis=1), presentations, pd.DataFrame(units), times=TIMES, name="toy")


@pytest.fixture(scope="module")
def table(models, brain):
    return rsa(models, brain, window=0.04, step=0.02, bootstrap=50, permutations=50)


def test_every_window_is_scored_like_an_rdm_of_its_own(models, brain, table):
    rdms = rdm_over_time(brain, "correlation", 0.04, 0.02)
    assert np.allclose(sorted(table["time"].unique()), sorted(rdms.table["time"].unique()))
    assert len(table) == 2 * 2 * table["time"].nunique()
    for time in table["time"].unique()[::5]:
        for region in PEAKS:
            here = rdms[(rdms.table["time"].eq(time) & rdms.table["region"].eq(region)).to_numpy()]
            assert len(here) == 3
            rows = table[(table["time"] == time) & (table["region"] == region)]
            np.testing.assert_allclose(rows["score"], compare(models, here).mean(1), atol=1e-12)
            assert (rows["ceiling_low"].iloc[0], rows["ceiling"].iloc[0]) == pytest.approx(rsa_ceiling(here))
    assert table["formula"].unique().tolist() == [
        "rsa-correlation-rho-a-1: mean over subjects; windows of 0.04 s; ci: bootstrap over stimuli; "
        "p: stimulus-label permutation"
    ]


def test_regions_peak_when_they_should_and_not_before_the_stimulus(table):
    late = table[table["layer"] == "late"]
    for region, peak in PEAKS.items():
        course = late[late["region"] == region].set_index("time")
        assert course["score"].idxmax() == pytest.approx(peak, abs=0.025)
        assert (course["p"][course["score"].idxmax()], course["ci_low"].max() > 0.5) == (pytest.approx(1 / 51), True)
        before = course["score"][course.index < 0.0]
        assert before.abs().max() < 0.35


def test_windows_share_their_draws(models, brain):
    """Windows with the same responses have the same interval and p."""
    same = Recording(
        np.repeat(brain.responses[:, :, 10:11], 3, axis=2), brain.presentations, brain.units, times=[0.0, 0.1, 0.2]
    )
    table = rsa(models, same, window=0.0, bootstrap=30, permutations=30)
    for _, rows in table.groupby(["region", "layer"]):
        assert len(rows) == 3 and rows[["score", "ci_low", "ci_high", "p"]].drop_duplicates().shape[0] == 1


def test_one_subject_has_a_ceiling_from_halves_in_every_window(models, latent):
    alone = recording(latent, subjects=["A"])
    table = rsa(models, alone, window=0.04, **NONE)
    ceiling = table[table["layer"] == "late"].set_index(["region", "time"])["ceiling"]
    at = {region: min(ceiling[region].index, key=lambda time: abs(time - peak)) for region, peak in PEAKS.items()}
    assert all(ceiling[region, time] > 0.8 for region, time in at.items())
    assert ceiling.fillna(0)[ceiling.index.get_level_values("time") < 0].mean() < 0.5


def test_whitened_windows_of_one_subject_have_scores_and_no_ceiling(models, latent):
    alone = recording(latent, subjects=["A"])
    table = rsa(models, alone, rdm="mahalanobis", noise="diagonal", window=0.1, **NONE)
    assert table["score"].notna().all() and table["ceiling"].isna().all()
    crossed = rsa(models, alone, rdm="crossnobis", noise="diagonal", folds="run", window=0.1, **NONE)
    assert crossed["score"].notna().all() and crossed["ceiling"].max() > 0.8


def test_subjects_are_averaged_and_drawn_per_window(models, brain):
    averaged_table = rsa(models, brain, window=0.1, subjects="average", **NONE)
    assert (averaged_table["subject"] == "average of 3").all() and "time" in averaged_table
    drawn = rsa(models, brain, window=0.1, over="subjects", bootstrap=30, permutations=0)
    assert drawn["ci_low"].notna().all() and not drawn.attrs["evidence"].comparison


def test_given_rdms_with_times_are_kept_apart(models, brain):
    rdms = rdm_over_time(brain, "correlation", 0.1)
    given, made = rsa(models, rdms, **NONE), rsa(models, brain, window=0.1, **NONE)
    np.testing.assert_allclose(given["score"], made["score"], atol=1e-12)
    np.testing.assert_array_equal(given["time"], made["time"])


def test_cross_validated_dissimilarities_over_time(models, brain):
    table = rsa(models, brain, rdm="crossnobis", compare="pearson", window=0.1, folds="run", **NONE)
    rdms = rdm_over_time(brain, "crossnobis", 0.1, folds="run")
    here = rdms[(rdms.table["time"].eq(rdms.table["time"].iloc[-1]) & rdms.table["region"].eq("IT")).to_numpy()]
    rows = table[(table["time"] == here.table["time"].iloc[0]) & (table["region"] == "IT")]
    np.testing.assert_allclose(rows["score"], compare(models, here, "pearson").mean(1), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "give window, in seconds .*recording.average_time"),
        ({"step": 0.1}, "step=0.1 needs window"),
        ({"window": 3.0}, "window"),
        ({"window": -0.1}, "window"),
    ],
)
def test_times_need_a_window(models, brain, change, message):
    with pytest.raises(ValueError, match=message):
        rsa(models, brain, **NONE, **change)


def test_a_window_needs_times(models, brain):
    with pytest.raises(ValueError, match=r"window=0.1, but responses has shape \(56, 90\), without times"):
        rsa(models, brain.average_time(0.0, 0.2), window=0.1, **NONE)
    with pytest.raises(ValueError, match="regions .*at .* s"):
        model_comparison(models, rdm_over_time(brain.select(region="IT"), "correlation", 0.1))


# ------------------------------------------------------------------------------------------------ tables and pages


def test_evidence_holds_one_brain_rdm_per_region_at_its_peak(brain, table):
    rdms = table.attrs["evidence"].rdms
    shown = rdms[(rdms.table["kind"] == "brain").to_numpy()]
    assert shown.table["region"].tolist() == ["V1", "IT"]
    everything = rdm_over_time(brain, "correlation", 0.04, 0.02)
    for region in PEAKS:
        rows = table[table["region"] == region]
        time = rows.loc[rows["score"].idxmax(), "time"]
        one = shown.select(region=region)
        assert one.table["time"].iloc[0] == time and one.table["label"].iloc[0] == f"{region} at {time:.3g} s"
        here = everything[(everything.table["time"].eq(time) & everything.table["region"].eq(region)).to_numpy()]
        np.testing.assert_allclose(one.vectors[0], here.vectors.mean(0))


def test_summaries_are_of_the_peak(table):
    peak = at_peak(table)
    assert len(peak) == 4 and peak["score"].max() == table["score"].max()
    assert best_layers(averaged(peak)) == {"V1": ("net", "late"), "IT": ("net", "late")}
    first = headlines(table)[0]
    time = peak[peak["region"] == "V1"]["time"].iloc[0]
    assert first.startswith(f"The geometry of V1 is best matched by net / late, at {time:.3g}\u00a0s: rho-a = ")
    static = table.drop(columns="time")
    assert at_peak(static) is static and not is_timed(static).any()


def test_peak_is_of_the_mean_over_rows_of_one_time():
    """Three subjects: the highest single score is not the highest mean."""
    rows = [
        {"model": "m", "layer": "a", "region": "V1", "dataset": "d", "metric": "r", "time": time, "score": score}
        for time, scores in ((0.1, (0.2, 0.9)), (0.2, (0.6, 0.7)))
        for score in scores
    ]
    assert at_peak(pd.DataFrame(rows))["time"].tolist() == [0.2, 0.2]


def test_terminal_shows_the_peak_only(table):
    text = readable(table)
    title, header, *body = text.splitlines()
    assert title.endswith("(* best; at the time of the highest score of each region; intervals over stimuli)")
    assert "time (s)" in header and len(body) == 4


@pytest.mark.parametrize("suffix", [".csv", ".json", ".h5"])
def test_times_come_back_from_files(tmp_path, table, suffix):
    save_results(table, tmp_path / f"t{suffix}")
    back = load_results(tmp_path / f"t{suffix}")
    np.testing.assert_allclose(back["time"].astype(float), table["time"])


def test_page_has_a_section_over_time_and_lists_every_row(tmp_path, table):
    text = report(table, tmp_path / "r.html").read_text()
    assert ">RSA over time</h2>" in text and ">RSA scores</h2>" not in text
    assert f"{len(table)} rows;" in text and "Every window of time has RDMs" in text
    assert "V1 at " in text and "IT at " in text  # labels of the gallery
    static = table[table["time"] == table["time"].iloc[0]].drop(columns="time")
    both = report([static, table], tmp_path / "r.html").read_text()
    assert ">RSA over time</h2>" in both and ">RSA scores</h2>" in both
    assert f"{len(table) + len(static)} rows;" in both
