"""The command line: what is printed where, what is written, and how it fails."""

import hashlib
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neuralign import __version__, align, datasets, encoders, options
from neuralign.align.bands import score_bands
from neuralign.align.inference import compare_models
from neuralign.align.score import Score, tabulate
from neuralign.cli import main
from neuralign.datasets import registry
from neuralign.datasets.rdms import RDMs
from neuralign.datasets.registry import DatasetCard, FileCard
from neuralign.tables import aligned, pairs, readable, summary

SMALL = ["simulated", "--select", "n_stimuli=40", "--select", "n_units=16"]
QUICK = ["--bootstrap", "20", "--permutations", "20"]
NO_RESAMPLING = ["--bootstrap", "0", "--permutations", "0"]
SMALL_ALPHAS = np.logspace(-6, 4, 21)
COMMAND = Path(sys.executable).parent / "neuralign"


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder; exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def failing(cli):
    """Run a command that must fail with one line on stderr, and give that line without its beginning."""

    def run(*arguments):
        code, out, err = cli(*arguments)
        assert (code, out) == (1, ""), err
        *progress, line = err.splitlines()
        assert line.startswith("error: ")
        assert not any(word in err for word in ("Traceback", "warning:")), err
        assert len(progress) <= 1  # the pixels that were read before
        return line.removeprefix("error: ")

    return run


@pytest.fixture(scope="module")
def recording():
    return datasets.simulate.visual_cortex(n_stimuli=40, n_units=16, seed=3)


@pytest.fixture(scope="module")
def saved(recording, tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "mine.h5"
    recording.save(path)
    return path


def shell(*arguments, **options):
    """The console command in a process of its own."""
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, **options)


def kernel_ridge(alphas, kernel):
    return make_pipeline(StandardScaler(), encoders.KernelRidgeCV(alphas, kernel, score="r2"))


def rows(text):
    """Cells of a printed table, header first; columns are two spaces apart at least."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


def printed(text):
    """The table that was printed as JSON."""
    table = pd.DataFrame(json.loads(text))
    numbers = ("score", "ceiling", "ceiling_low", "normalised", "ci_low", "ci_high", "p")
    return table.astype(dict.fromkeys(numbers, float))  # null in all rows is no number yet


# ------------------------------------------------------------------------------------------------ whole processes


def test_score_prints_a_table_and_only_progress_beside_it(tmp_path):
    done = shell("score", "pixels", *SMALL, *QUICK, cwd=tmp_path)
    assert done.returncode == 0
    assert set(done.stderr.splitlines()) <= {
        "pixels: 1 layer, 1 to compute",
        "pixels: 1 layer, 1 stored",
        "pixels pixels: fitting",
    }
    first, second = done.stdout.split("\n\n")
    title, header, *body = first.splitlines()
    assert title == "simulated: r, 40 stimuli, 4 units a region (* best)"
    assert rows(header)[0] == ["region", "model", "layer", "r", "95 % interval", "ceiling", "normalised", "p"]
    assert [row[:3] for row in rows("\n".join(body))] == [
        [name, "pixels", "pixels"] for name in datasets.simulate.REGIONS
    ]
    assert second.startswith("simulated: r2, ")
    assert list(tmp_path.iterdir()) == []


def test_rsa_prints_json_and_nothing_else(tmp_path):
    options = ["--compare", "spearman", "--rdm", "sqeuclidean", "--json", *QUICK]
    done = shell("rsa", "gabor", *SMALL, *options, cwd=tmp_path)
    assert done.returncode == 0
    table = pd.DataFrame(json.loads(done.stdout))
    assert table["metric"].unique().tolist() == ["spearman"]
    assert table["model"].unique().tolist() == ["gabor", "pixels"]
    assert table["formula"].str.contains("rsa-sqeuclidean-spearman").all()


def test_an_error_is_one_line_and_a_traceback_is_asked_for(tmp_path):
    done = shell("score", "pixels", "simulatd", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: dataset='simulatd' is unknown; did you mean 'simulated'? Known: ")
    done = shell("score", "pixels", "simulatd", "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.splitlines()[-1].startswith("ValueError: dataset='simulatd' is unknown")


def test_a_closed_pipe_is_no_error(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)  # as `| head -0` does
    done = subprocess.run([COMMAND, "datasets", "--json"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""


def test_an_interrupt_stops_without_a_traceback(tmp_path):
    long = ["--select", "n_stimuli=60", "--select", "n_units=400", "--bootstrap", "30000", "--out", "x.csv"]
    process = subprocess.Popen(
        [COMMAND, "score", "pixels", "simulated", *long],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        for line in process.stderr:
            if line == "pixels pixels: fitting\n":
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ help and lists


def test_help_names_every_command_in_a_whole_sentence(cli):
    code, out, err = cli("--help")
    assert (code, err) == (0, "")
    for command in ("demo", "datasets", "models", "score", "rsa", "report"):
        [line] = [line for line in out.splitlines() if line.split()[:1] == [command]]
        assert line.endswith("."), "cut off"
        assert not line.endswith("..."), "cut off"
    assert "--no-debug" not in out


@pytest.mark.parametrize("command", ["demo", "datasets", "models", "score", "rsa", "report", "datasets check"])
def test_every_option_is_explained(cli, command):
    code, out, _ = cli(*command.split(), "--help")
    assert code == 0
    assert f"Usage: neuralign {command}" in out
    options = [line.split(maxsplit=1) for line in out.splitlines() if line.strip().startswith("--")]
    assert options
    assert [name for name, *text in options if not text] == []


def test_version(cli):
    assert cli("--version") == (0, f"{__version__}\n", "")


def test_without_arguments_help_is_shown(cli):
    code, out, err = cli()
    assert code == 2
    assert (out + err).startswith("Usage: neuralign")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scor", "pixels", "simulated"], "Did you mean 'score'?"),
        (["score", "pixels"], "Missing argument 'DATASET'"),
        (["score", "pixels", "simulated", "--nonsense"], "--nonsense"),
        (["score", "pixels", "simulated", "--permutations", "many"], "--permutations"),
        (["score", "pixels", "simulated", "--bootstrap", "-3"], "--bootstrap"),
        (["score", "pixels", "simulated", "--cv", "1"], "--cv"),
        (["report"], "Missing argument"),
    ],
)
def test_wrong_usage_is_explained(cli, arguments, message):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: neuralign")
    assert message in err


def test_datasets(cli):
    code, out, err = cli("datasets")
    assert (code, err) == (0, "")
    header, *body = rows(out)
    assert header == ["name", "found", "modality", "title"]
    assert {"cowley-v4", "kriegeskorte-92", "simulated"} <= {row[0] for row in body}
    assert ["simulated", "yes", "fMRI (simulated)"] in [row[:3] for row in body]
    listed = json.loads(cli("datasets", "--json")[1])
    assert [one["name"] for one in listed] == [row[0] for row in body]
    assert all(one["licence"] for one in listed)


def test_datasets_info(cli):
    code, out, err = cli("datasets", "info", "cowley-v4")
    assert (code, err) == (0, "")
    card = datasets.info("cowley-v4")
    fields = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(" "))
    for name in ("title", "citation", "licence", "source", "notes"):
        assert fields[name] == getattr(card, name)
    assert [line.split()[-1] for line in out.splitlines() if ".npy" in line or ".zip" in line] == [
        file.path for file in card.files
    ]


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    """A dataset of two files that are as they should be."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"responses")
    (folder / "b.bin").write_bytes(b"stimuli")
    files = (FileCard("a.bin", 9, hashlib.sha256(b"responses").hexdigest()), FileCard("b.bin", 7))
    card = DatasetCard("shelf", "Two files", "none", "none", "none", "a drawer", files)
    registry._loaders()  # else the shipped datasets would be registered now, and this one be taken away with them
    monkeypatch.setitem(registry._REGISTERED, "shelf", (card, lambda root: None))
    return folder


def test_datasets_check(cli, shelf):
    check = ("datasets", "check", "shelf", "--root", shelf)
    code, out, err = cli(*check)
    assert (code, err) == (0, "")
    assert [row[:3] for row in rows(out)] == [["file", "found", "size"], ["a.bin", "yes", "9"], ["b.bin", "yes", "7"]]
    (shelf / "b.bin").unlink()
    code, out, err = cli(*check)
    assert (code, err) == (1, "1 of 2 files are absent or damaged\n")
    assert rows(out)[2][:2] == ["b.bin", "no"]
    assert rows(out)[2][-1] == "absent"
    (shelf / "a.bin").write_bytes(b"repsonses")
    code, out, err = cli(*check, "--json")
    assert (code, err) == (1, "2 of 2 files are absent or damaged\n")
    assert [one["found"] for one in json.loads(out)] == [True, False]


def test_datasets_check_of_one_without_files(cli):
    assert cli("datasets", "check", "simulated") == (0, "simulated needs no files\n", "")
    assert json.loads(cli("datasets", "check", "simulated", "--json")[1]) == []


def test_models(cli):
    code, out, err = cli("models")
    assert (code, err) == (0, "")
    header, *body = rows(out)
    assert header == ["name", "modality", "layers", "title"]
    cards = encoders.model_cards()
    assert [row[0] for row in body] == [card.name for card in cards]
    assert [one["layers"] for one in json.loads(cli("models", "--json")[1])] == [", ".join(c.layers) for c in cards]


def test_layers_of_a_model(cli):
    code, out, err = cli("models", "gabor")
    assert (code, err) == (0, "")
    card, layers = out.split("\n\n")
    assert "Kay et al. 2008" in card
    assert rows(layers) == [
        ["layer", "shape", "depth", "default"],
        ["amplitude", "16 x 64 x 64", "0.5"],
        ["energy", "16 x 8 x 8", "1.0", "*"],
        ["output", "16 x 8 x 8", "1.0"],
    ]
    code, out, _ = cli("models", "resnet20-cifar-untrained")
    assert code == 0
    assert "random weights" in out
    assert ["layer3", "64 x 8 x 8", "1.0", "*"] in rows(out)
    layers = {one["layer"]: one["shape"] for one in json.loads(cli("models", "resnet20-cifar-untrained", "--json")[1])}
    assert layers["conv1"] == "16 x 32 x 32"
    assert layers["linear"] == "10"


# ------------------------------------------------------------------------------------------------ results


def test_json_is_what_the_function_returns(cli, recording):
    code, out, _ = cli("score", "pixels", *SMALL, "--select", "seed=3", *QUICK, "--pool", 0, "--json")
    assert code == 0
    features = encoders.extract("pixels", recording.stimuli)
    encoder = encoders.RidgeCV(score="r2", standardise=True)
    expected = align.score(features, recording, encoder, bootstrap=20, permutations=20)
    pd.testing.assert_frame_equal(printed(out), expected, check_dtype=False, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "encoder"),
    [
        (["--encoder", "ridge"], encoders.RidgeCV(score="r2", standardise=True)),
        (["--encoder", "kernel"], kernel_ridge(SMALL_ALPHAS, "rbf")),
        (["--kernel", "poly", "--encoder", "kernel"], kernel_ridge(SMALL_ALPHAS, "poly")),
        (["--encoder", "kernel", "--kernel", "linear"], kernel_ridge(None, "linear")),
        (
            ["--encoder", "pls"],
            encoders.PLSRegression((1, 2, 3, 4, 6, 8, 12, 16, 25), scale=True, score="r2", per_unit=True),
        ),
    ],
)
def test_encoders_score_each_layer(cli, recording, saved, options, encoder):
    code, out, err = cli("score", "gabor", saved, *options, *NO_RESAMPLING, "--no-controls", "--cv", 3, "--json")
    assert (code, "warning" in err) == (0, False), err
    features = encoders.extract("gabor", recording.stimuli, reduce=6)
    expected = align.score(features, recording, encoder, cv=3, bootstrap=0, permutations=0)
    pd.testing.assert_frame_equal(printed(out), expected, check_dtype=False, rtol=1e-12)


def test_banded_takes_the_layers_of_a_model_together(cli, recording, saved):
    arguments = ["--layers", "amplitude,energy", "--cv", 2, "--seed", 4, *NO_RESAMPLING]
    code, out, _ = cli("score", "gabor", saved, "--encoder", "banded", *arguments, "--json")
    assert code == 0
    features = [
        encoders.extract("gabor", recording.stimuli, ["amplitude", "energy"], reduce=6),
        encoders.extract("pixels", recording.stimuli, reduce=6),
    ]
    encoder = encoders.BandedRidgeCV(score="r2", seed=4)
    expected = score_bands(features, recording, encoder, cv=2, bootstrap=0, permutations=0, seed=4)
    table = printed(out)
    pd.testing.assert_frame_equal(table, expected, check_dtype=False, rtol=1e-12)
    assert table["layer"].unique().tolist() == ["all", "amplitude", "energy", "pixels"]
    code, out, _ = cli("score", "gabor", saved, "--encoder", "banded", *arguments)
    title, header, *body = out.split("\n\n")[0].splitlines()
    assert title.endswith("(* best; layers are parts of all)")
    assert rows("\n".join([header, *body[:5]]))[0][:3] == ["region", "model", "layer"]
    starred = [row[:3] for row in rows("\n".join(body)) if "*" in row[3]]
    assert len(starred) == 4 and {layer for *_, layer in starred} == {"all"}


@pytest.mark.parametrize("command", [["score"], ["rsa", "--compare", "spearman", "--rdm", "sqeuclidean"]])
def test_out_writes_what_is_shown(cli, saved, tmp_path, command):
    for name in ("x.csv", "x.json", "x.h5"):
        code, out, err = cli(command[0], "pixels", saved, *command[1:], *NO_RESAMPLING, "--json", "--out", name)
        assert code == 0
        assert err.splitlines()[-1] == f"wrote {name}"
        pd.testing.assert_frame_equal(align.load_results(name), printed(out), check_dtype=False, rtol=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv", "x.h5", "x.json"]


def test_out_may_be_repeated(cli, failing, saved, tmp_path):
    code, _, err = cli("rsa", "pixels", saved, *NO_RESAMPLING, "--out", "x.csv", "--out", "x.h5")
    assert code == 0 and err.splitlines()[-2:] == ["wrote x.csv", "wrote x.h5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv", "x.h5"]
    assert "suffix of --out='.txt'" in failing("rsa", "pixels", saved, "--out", "y.txt", "--out", "y.csv")
    for command in (["report", "x.h5"], ["demo"]):
        assert "--out is given 2 times; expected one page" in failing(*command, "--out", "a.html", "--out", "b.html")
    assert cli("report", "x.h5")[:2] == (0, "report.html\n")


def test_out_writes_a_page_as_report_does(cli, saved, tmp_path):
    rsa = ("rsa", "pixels", saved, *NO_RESAMPLING)
    assert cli(*rsa, "--out", "direct.html")[0] == 0
    assert cli(*rsa, "--out", "x.h5")[0] == 0
    assert cli("report", "x.h5", "--out", "page.html") == (0, "page.html\n", "")
    for name in ("direct.html", "page.html"):
        page = (tmp_path / name).read_text()
        assert all(region in page for region in datasets.simulate.REGIONS)
        assert page.count("<img") > 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["direct.html", "page.html", "x.h5"]


def test_regions_layers_and_controls(cli, saved):
    chosen = ["--regions", "V1,FFA", "--select", "repeat=0", *NO_RESAMPLING]

    def scored(model, *options):
        code, out, err = cli("rsa", model, saved, *chosen, "--json", *options)
        assert code == 0, err
        table = pd.DataFrame(json.loads(out))
        assert table["region"].unique().tolist() == ["V1", "FFA"]
        return table.loc[table["region"] == "V1", ["model", "layer"]].agg(" ".join, axis=1).tolist()

    network = "resnet20-cifar-untrained"
    assert scored("gabor") == ["gabor energy", "pixels pixels"]
    assert scored("gabor", "--no-controls") == ["gabor energy"]
    assert scored("gabor", "--layers", "a*,energy") == ["gabor amplitude", "gabor energy", "pixels pixels"]
    assert scored("gabor, texture", "--layers", "output") == ["gabor output", "texture output", "pixels pixels"]
    assert scored("pixels") == ["pixels pixels"]
    assert scored(network, "--layers", "layer*", "--no-controls") == [f"{network} layer{n}" for n in (1, 2, 3)]
    assert scored(network, "--layers", "conv1,layer3.*.bn2", "--no-controls") == [
        f"{network} {layer}" for layer in ("conv1", "layer3.0.bn2", "layer3.1.bn2", "layer3.2.bn2")
    ]
    assert scored("gabor", "--layers", "all", "--no-controls") == [
        f"gabor {name}" for name in ("amplitude", "energy", "output")
    ]


def test_a_trained_network_brings_its_untrained_copy(cli, data_root, monkeypatch):
    monkeypatch.setenv("NEURALIGN_DATA", str(data_root))
    code, out, _ = cli("rsa", "resnet20-cifar", *SMALL, *NO_RESAMPLING, "--layers", "layer3", "--json")
    assert code == 0
    names = {(one["model"], one["layer"]) for one in json.loads(out)}
    assert names == {("resnet20-cifar", "layer3"), ("resnet20-cifar-untrained", "layer3"), ("pixels", "pixels")}


def test_a_saved_recording_is_a_dataset(cli, saved):
    code, own, _ = cli("rsa", "pixels", saved, *NO_RESAMPLING, "--select", "region=V4", "--json")
    assert code == 0
    code, simulated, _ = cli("rsa", "pixels", *SMALL, "--select", "seed=3", *NO_RESAMPLING, "--regions", "V4", "--json")
    assert code == 0
    assert json.loads(own) == json.loads(simulated)


@pytest.fixture(scope="module")
def group(recording, tmp_path_factory):
    """Three subjects: the units dealt out."""
    units = recording.units.assign(subject=[f"s{k % 3}" for k in range(recording.n_units)], region="V")
    path = tmp_path_factory.mktemp("group") / "group.h5"
    datasets.Recording(recording.responses, recording.presentations, units, stimuli=recording.stimuli).save(path)
    return path


def test_thresholds_reach_the_function(cli, saved, recording):
    options = ["--topology", "0.1,0.7", "--compare", "pearson", "--no-controls", *NO_RESAMPLING, "--json"]
    for extra, given in (
        ([], (0.1, 0.7)),
        (["--transform", "rgdm"], {"lower": 0.1, "upper": 0.7, "transform": "rgdm"}),
    ):
        code, out, err = cli("rsa", "gabor", saved, *options, *extra)
        assert code == 0, err
        features = [encoders.extract("gabor", recording.stimuli, reduce=None, cache=False)]
        expected = align.rsa(features, recording, compare="pearson", topology=given, bootstrap=0, permutations=0)
        np.testing.assert_allclose(printed(out)["score"], expected["score"], atol=1e-9)


def test_models_are_compared_over_both(cli, group):
    code, out, err = cli("rsa", "gabor,texture", group, "--layers", "output", "--over", "both", *QUICK)
    assert code == 0, err
    scores, pairs = out.split("\n\n")
    assert scores.startswith("group of 3: rho-a, 40 stimuli")
    assert scores.splitlines()[0].endswith("(* best; intervals over stimuli and subjects)")
    title, header, *body = pairs.splitlines()
    assert re.fullmatch(r"V: \d of 3 pairs of models (are|is) told apart \(over stimuli and subjects; FDR 5 %\)", title)
    assert rows(header)[0] == ["first", "second", "difference", "se", "p", "corrected"] and len(body) == 3
    code, out, _ = cli("rsa", "pixels", group, "--over", "subjects", "--no-controls", *QUICK)
    assert code == 0 and out.endswith("V: one model, nothing to compare it with\n")


def test_pairs_of_many_models_are_listed_where_they_are_told_apart():
    rng = np.random.default_rng(0)
    ids = [f"s{k}" for k in range(12)]
    truth = rng.random(66)
    brain = truth + 0.2 * rng.random((5, 66))
    models = np.concatenate([truth[None], rng.random((8, 66))])
    labels = pd.DataFrame({"label": [f"m{k}" for k in range(9)]})
    made = compare_models(RDMs(models, ids, labels), RDMs(brain, ids), over="subjects", bootstrap=50)
    title, _, *body = pairs(made, "V1").splitlines()
    apart = made.pairwise()["p_corrected"] <= 0.05
    assert title.startswith(f"V1: {apart.sum()} of 36 pairs") and 0 < apart.sum() < 36
    assert len(body) == apart.sum() and all("*" in line for line in body)


def test_titles_say_how_rdms_were_transformed_and_what_was_drawn(cli, group):
    for chosen, words in (
        ([*QUICK], "(* best; intervals over stimuli)"),
        (["--over", "subjects", *QUICK], "(* best; intervals over subjects)"),
        (["--topology", "0.2,0.8", *NO_RESAMPLING], "(* best; RDMs through RGTM from 0.2 to 0.8)"),
        (
            ["--topology", "0.2,0.8", "--transform", "rgdm", "--subjects", "average", *QUICK],
            "(* best; RDMs through RGDM from 0.2 to 0.8; intervals over stimuli)",
        ),
    ):
        code, out, err = cli("rsa", "pixels", group, "--no-controls", *chosen)
        assert code == 0 and out.splitlines()[0].endswith(words), (out, err)


@pytest.mark.parametrize("options", [["--bootstrap", "0"], ["--bootstrap", "20", "--over", "subjects"]])
def test_comparisons_of_whole_kernels_run_as_their_error_says(cli, group, options):
    code, out, err = cli("rsa", "pixels", group, "--no-controls", "--compare", "bures", "--permutations", 0, *options)
    assert code == 0 and "bures" in out, err


def test_a_dissimilarity_has_no_use_where_all_are_rdms(cli, failing, monkeypatch):
    rng = np.random.default_rng(0)
    ready = RDMs(
        rng.random((3, 28)), [f"s{k}" for k in range(8)], pd.DataFrame({"region": "IT", "subject": list("abc")})
    )
    monkeypatch.setattr(datasets, "load", lambda *_, source=None, **__: ready[0] if source else ready)
    arguments = ["rsa", "rdms:other", "kriegeskorte-92", *NO_RESAMPLING]
    assert cli(*arguments)[0] == 0
    message = failing(*arguments, "--rdm", "crossnobis")
    assert (
        message.startswith("--rdm crossnobis: models and brain are RDMs that are made already")
        and "leave it" in message
    )


def test_cross_validation_and_noise_reach_the_function(cli, saved, recording):
    options = ["--rdm", "crossnobis", "--folds", "repeat", "--noise", "diagonal", "--compare", "cosine"]
    code, out, err = cli("rsa", "gabor", saved, "--no-controls", *options, *NO_RESAMPLING, "--json")
    assert code == 0, err
    features = [encoders.extract("gabor", recording.stimuli, reduce=None, cache=False)]
    given = {"rdm": "crossnobis", "folds": "repeat", "noise": "diagonal", "compare": "cosine"}
    expected = align.rsa(features, recording, bootstrap=0, permutations=0, **given)
    np.testing.assert_allclose(printed(out)["score"], expected["score"], atol=1e-9)
    assert printed(out)["formula"].str.contains("rsa-crossnobis-cosine-1: models sqeuclidean").all()


def test_windows_reach_the_function_and_the_terminal_shows_the_peak(cli, recording, tmp_path):
    course = np.array([0.1, 1.0, 0.2, 0.1])
    noise = np.random.default_rng(0).normal(size=(*recording.responses.shape, 4))
    responses = np.asarray(recording.responses)[:, :, None] * course + 0.3 * noise
    times = [0.0, 0.05, 0.1, 0.15]
    timed = datasets.Recording(
        responses, recording.presentations, recording.units, times=times, stimuli=recording.stimuli
    )
    timed.save(tmp_path / "timed.h5")
    arguments = ["rsa", "gabor", "timed.h5", "--window", "0.05", "--step", "0.05", "--no-controls", *NO_RESAMPLING]
    code, out, err = cli(*arguments, "--json")
    assert code == 0, err
    table = printed(out)
    n_regions = recording.units["region"].nunique()
    assert sorted(table["time"].unique()) == pytest.approx(times) and len(table) == 4 * n_regions
    code, out, _ = cli(*arguments, "--out", "timed.html")
    title, header, *body = out.splitlines()
    assert "at the time of the highest score" in title and "time (s)" in header
    assert len(body) == n_regions
    assert "RSA over time" in (tmp_path / "timed.html").read_text()


def test_help_names_every_method():
    """In words of its own, since help must not wait for what computes them."""
    from neuralign.align.compare import METHODS as COMPARISONS
    from neuralign.align.noise import METHODS as NOISES
    from neuralign.align.rdm import METHODS as DISSIMILARITIES
    from neuralign.align.rsa_sides import TRANSFORMS

    assert options.DISSIMILARITIES.split(", ") == list(DISSIMILARITIES)
    assert options.COMPARISONS.split(", ") == list(COMPARISONS)
    assert options.NOISES.split(", ") == list(NOISES)
    assert all(name in str(options.Transform.__metadata__[0].help) for name in TRANSFORMS)


def test_a_recording_of_one_unit(cli, recording, tmp_path):
    recording.select(unit=recording.units["unit"].iloc[:1].tolist()).save(tmp_path / "one.h5")
    code, out, err = cli("score", "pixels", "one.h5", *NO_RESAMPLING)
    assert (code, "Warning" in err) == (0, False)
    assert out.startswith("simulated: r, 40 stimuli, 1 unit (* best)\n")
    assert rows(out)[1] == ["region", "model", "layer", "r", "ceiling", "normalised"]


def test_units_that_cannot_be_scored_are_counted_once(cli, recording, tmp_path):
    responses = np.array(recording.responses)
    responses[:, 0] = 1
    responses[:, 4:8] = np.nan
    holes = datasets.Recording(responses, recording.presentations, recording.units, stimuli=recording.stimuli)
    holes.save(tmp_path / "holes.h5")
    code, out, err = cli("score", "pixels", "holes.h5", *QUICK)
    assert code == 0
    assert [line for line in err.splitlines() if "fitting" not in line and "1 layer, " not in line] == [
        "warning: 5 of 16 units are constant or lack responses; their scores are NaN"
    ]
    assert "up to 4 units a region" in out
    assert rows(out)[3] == ["V4", "pixels", "pixels", "-", "-", "-", "-", "-"]


def test_a_warning_of_every_fold_is_shown_once(cli, monkeypatch):
    def score(*_, **__):
        for _fold in range(5):
            warnings.warn("alpha is\n at the end of its grid", RuntimeWarning, stacklevel=1)
            with warnings.catch_warnings():  # as libraries do, upon which Python forgets what it has shown
                warnings.simplefilter("ignore")
        warnings.warn("something else", UserWarning, stacklevel=1)
        return tabulate([Score("m", "l", "d", "s", "r", "r", 0.5)])

    monkeypatch.setattr(align, "score", score)
    show, handlers = warnings.showwarning, list(logging.getLogger("neuralign").handlers)
    code, _, err = cli("score", "pixels", *SMALL)
    assert code == 0
    assert err.splitlines()[-2:] == ["warning: alpha is at the end of its grid", "warning: something else"]
    assert err.count("warning") == 2
    assert warnings.showwarning is show
    assert logging.getLogger("neuralign").handlers == handlers


def test_demo(cli, monkeypatch):
    scores = [Score("pixels", "l", "d", "s", region, "r", 0.3, 0.6) for region in ("V1", "V4")]
    scores += [Score("gabor", "l", "d", "s", region, "r", score, 0.6) for region, score in (("V1", 0.45), ("V4", 0.15))]
    asked = []

    def run(out, seed, device):
        asked.append((str(out), seed, device))
        return tabulate(scores), tabulate(scores[:1])

    monkeypatch.setattr("neuralign.demo.run", run)
    code, out, err = cli("demo", "--seed", 4, "--out", "page.html")
    assert (code, err) == (0, "")
    assert asked == [("page.html", 4, "auto")]
    assert rows(out)[2:5] == [
        ["model", "layer", "V1", "V4"],
        ["pixels", "l", "0.500", "0.500*"],
        ["gabor", "l", "0.750*", "0.250"],
    ]
    assert out.splitlines()[-1] == "Report: page.html"
    assert len(json.loads(cli("demo", "--json")[1])) == 5


# ------------------------------------------------------------------------------------------------ tables


def test_aligned():
    table = pd.DataFrame({"name": ["a", "longer"], "there": [True, False], "size": [3, 1234], "r": ["0.5", "-0.25"]})
    assert aligned(table, right=["r"]).splitlines() == [
        "name    there  size      r",
        "a       yes       3    0.5",
        "longer  no     1234  -0.25",
    ]
    assert aligned(table[:0]) == "name  there  size  r"


def test_readable_puts_a_region_together_and_stars_its_best():
    scores = [
        Score("m", layer, "d", "s1", region, "rho-a", score, ceiling, np.nan, low, low + 0.2, p, 4, 30)
        for layer, region, score, ceiling, low, p in [
            ("one", "V1", 0.5, 0.8, 0.4, 0.01),
            ("one", "V4", -0.25, np.nan, -0.3, 1.0),
            ("two", "V1", 0.25, 0.8, 0.1, 0.5),
            ("two", "V4", np.nan, np.nan, np.nan, np.nan),
        ]
    ]
    assert readable(tabulate(scores)).splitlines() == [
        "d, s1: rho-a, 30 stimuli, 4 units a region (* best)",
        "region  model  layer    rho-a     95 % interval  ceiling  normalised      p",
        "V1      m      one     0.500*    0.400 to 0.600    0.800       0.625  0.010",
        "V1      m      two     0.250     0.100 to 0.300    0.800       0.312  0.500",
        "V4      m      one    -0.250*  -0.300 to -0.100        -           -  1.000",
        "V4      m      two         -                  -        -           -      -",
    ]


def test_readable_leaves_out_what_is_not_there():
    scores = [Score("m", "", "", subject, "", "r", 0.5, n_stimuli=9) for subject in ("s1", "s2")]
    assert readable(tabulate(scores)).splitlines() == [
        "r, 9 stimuli (* best)",
        "subject  model       r",
        "s1       m      0.500*",
        "s2       m      0.500*",
    ]


def test_readable_does_not_rank_parts():
    scores = [
        Score("m", layer, "d", "s", "V1", "r2", score, n_stimuli=9, formula="bands-1 BandedRidgeCV cv=5")
        for layer, score in (("all", 0.25), ("one", 0.375), ("two", -0.125))
    ]
    assert readable(tabulate(scores)).splitlines() == [
        "d, s: r2, 9 stimuli (* best; layers are parts of all)",
        "region  model  layer       r2",
        "V1      m      all     0.250*",
        "V1      m      one     0.375",
        "V1      m      two    -0.125",
    ]


def test_summary_shows_shares_of_the_ceiling():
    scores = [Score("m", layer, "d", "s", "V1", "r", score, 0.8) for layer, score in (("one", 0.4), ("two", 0.6))]
    scores += [Score("m", "one", "d", "s", "V1", "r2", 0.9, 0.9)]
    assert summary(tabulate(scores)).splitlines() == [
        "model  layer      V1",
        "m      one    0.500",
        "m      two    0.750*",
    ]


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "gabr", *SMALL], "model='gabr' is unknown; did you mean 'gabor'?"),
        (["models", "gabbor"], "model='gabbor' is unknown; did you mean 'gabor'?"),
        (["score", ",", *SMALL], "model=',' names no model"),
        (["datasets", "info", "cowley"], "dataset='cowley' is unknown; did you mean 'cowley-v4'?"),
        (["rsa", "pixels", *SMALL, "--regions", "V1,FA"], "region='FA' is unknown; did you mean 'FFA'"),
        (["rsa", "gabor", *SMALL, "--layers", "enrgy"], "layers='enrgy' is unknown; did you mean 'energy'?"),
        (["rsa", "pixels", *SMALL, "--select", "n_stim=4"], "selector='n_stim' is unknown; did you mean 'n_stimuli'"),
        (["rsa", "pixels", *SMALL, "--select", "repat=4"], "selector='repat' is unknown; did you mean 'repeat'"),
        (["rsa", "pixels", *SMALL, "--select", "repeat"], "--select 'repeat': expected KEY=VALUE"),
        (["rsa", "pixels", *SMALL, "--session", "9"], "session='9' is unknown. Known: '1', '2', '3'."),
        (
            ["rsa", "pixels", *SMALL, "--subject", "simulate"],
            "subject='simulate' is unknown; did you mean 'simulated'?",
        ),
        (["rsa", "pixels", *SMALL, "--compare", "spearmn"], "'spearmn' is unknown; did you mean 'spearman'"),
        (["rsa", "pixels", *SMALL, "--rdm", "corelation"], "'corelation' is unknown; did you mean 'correlation'"),
        (["score", "pixels", *SMALL, "--device", "gpu"], "device='gpu'"),
        (["score", "pixels", *SMALL, "--encoder", "rigde"], "encoder='rigde' is unknown; did you mean 'ridge'?"),
        (["score", "pixels", *SMALL, "--encoder", "kernel", "--kernel", "rfb"], "kernel='rfb' is unknown; did you"),
        (["score", "pixels", *SMALL, "--kernel", "rbf"], "--kernel rbf goes with --encoder kernel; found --encoder ri"),
        (["score", "pixels", *SMALL, "--select", "n_stimuli=1"], "n_stimuli=1 is too few"),
        (["score", "pixels", *SMALL, "--select", "n_stimuli=4"], "5 folds of 4 stimuli"),
        (["rsa", "pixels", "mine.h5"], "no file at mine.h5"),
        (["report", "nowhere.h5"], "no results at nowhere.h5"),
        (["rsa", "pixels", *SMALL, "--topology", "0.2"], "--topology '0.2': expected L,U, two numbers, e.g. 0.2,0.8"),
        (["rsa", "pixels", *SMALL, "--topology", "a,b"], "--topology 'a,b': expected L,U, two numbers, e.g. 0.2,0.8"),
        (["rsa", "pixels", *SMALL, "--topology", ".8,.2"], "topology=(0.8, 0.2): the lower threshold must not be ab"),
        (["rsa", "pixels", *SMALL, "--topology", "0.2,1.8"], "lie in [0, 1]"),
        (["rsa", "pixels", *SMALL, "--transform", "rgdm"], "--transform rgdm goes with --topology L,U"),
        (["rsa", "pixels", *SMALL, "--topology", "0,1", "--transform", "rdgm"], "did you mean 'rgtm' or 'rgdm'"),
        (
            ["rsa", "pixels", *SMALL, "--compare", "bures"],
            "--compare bures with --bootstrap 1000 --over stimuli: it compares whole kernels, of which stimuli "
            "cannot be drawn twice; add --bootstrap 0 for no interval, or --over subjects",
        ),
        (["rsa", "pixels", *SMALL, "--compare", "riemannian", "--over", "both"], "--over both: it compares whole ker"),
        (["rsa", "pixels", *SMALL, "--over", "subject"], "over='subject' is unknown; did you mean 'subjects'"),
        (["rsa", "pixels", *SMALL, "--over", "both"], "has one RDM; use over='stimuli'"),
        (["rsa", "pixels", *SMALL, "--window", "0.1"], "without times; leave it out"),
        (["rsa", "pixels", *SMALL, "--noise", "diagonal"], "method='correlation' takes no noise"),
        (["rsa", "pixels", *SMALL, "--rdm", "crossnobis", "--folds", "runs"], "folds='runs' is unknown"),
    ],
)
def test_errors_name_what_was_found_and_the_mend(failing, arguments, message):
    assert message in failing(*arguments)


@pytest.mark.parametrize("arguments", [["--debug", "models", "gabbor"], ["models", "gabbor", "--debug"]])
def test_debug_lets_the_error_through(arguments):
    with pytest.raises(ValueError, match="did you mean 'gabor'"):
        main(arguments)


def test_an_error_that_nobody_foresaw_says_its_kind(failing, monkeypatch):
    def check(*_):
        raise KeyError("x")

    monkeypatch.setattr(datasets, "check", check)
    assert failing("datasets", "check", "simulated") == "KeyError: 'x' (--debug shows where)"


@pytest.mark.parametrize("command", [["score", "pixels"], ["datasets", "check"]])
def test_missing_data_says_where_to_get_it(failing, monkeypatch, tmp_path, command):
    monkeypatch.delenv("NEURALIGN_DATA", raising=False)
    message = failing(*command, "cowley-v4")
    assert "https://github.com/cowleygroup/V4_compact_models" in message
    assert "NEURALIGN_DATA" in message
    assert str(tmp_path / "nowhere") in failing(*command, "cowley-v4", "--root", tmp_path / "nowhere")


def test_missing_weights_say_where_to_get_them(failing):
    message = failing("rsa", "resnet20-cifar", *SMALL, "--weights", "nowhere.th")
    assert "akamaster/pytorch_resnet_cifar10" in message


def test_truncated_files_are_named(failing, recording, tmp_path):
    whole = tmp_path / "mine.h5"
    recording.save(whole)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert "mine.h5" in failing("score", "pixels", "mine.h5")
    assert "not a whole" in failing("report", "mine.h5", "--out", "x.html")

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(6):
            image = io.BytesIO()
            Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(image, "png")
            file.writestr(f"{number}.png", image.getvalue())
    (tmp_path / "images_210325.zip").write_bytes(archive.getvalue()[: len(archive.getvalue()) // 2])
    np.save(tmp_path / "responses_210325.npy", np.zeros((3, 6)))
    message = failing("score", "pixels", "cowley-v4", "--root", tmp_path)
    assert "images_210325.zip" in message


def test_one_stimulus_has_no_geometry(failing, recording, tmp_path):
    recording.select(stimulus=recording.stimuli.ids[0]).save(tmp_path / "one.h5")
    assert "1 stimuli" in failing("rsa", "pixels", "one.h5", *NO_RESAMPLING)
    assert "5 folds of 1 stimuli" in failing("score", "pixels", "one.h5", *NO_RESAMPLING)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("nowhere/x.csv", "there is no folder nowhere"),
        ("x.txt", "suffix of --out='.txt' is unknown"),
        ("folder.h5", "is a folder"),
    ],
)
@pytest.mark.parametrize("command", [["score", "pixels", "simulated"], ["rsa", "pixels", "simulated"]])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    failing, monkeypatch, tmp_path, command, out, message
):
    (tmp_path / "folder.h5").mkdir()
    monkeypatch.setattr(datasets, "load", lambda *_, **__: pytest.fail("the work was begun"))
    assert message in failing(*command, "--out", out)


def test_a_page_that_cannot_be_written_is_refused_before_the_work(failing, monkeypatch):
    monkeypatch.setattr("neuralign.demo.run", lambda *_, **__: pytest.fail("the work was begun"))
    assert "there is no folder nowhere" in failing("demo", "--out", "nowhere/x.html")
    monkeypatch.setattr(align, "load_results", lambda *_: pytest.fail("the work was begun"))
    assert "there is no folder nowhere" in failing("report", "x.h5", "--out", "nowhere/x.html")


def test_results_and_recordings_are_told_apart(failing, recording, tmp_path):
    recording.save(tmp_path / "mine.h5")
    assert "Recording" in failing("report", "mine.h5")
    align.save_results(tabulate([Score("m", "l", "d", "s", "V1", "r", 0.5)]), tmp_path / "scores.h5")
    assert "expected a Recording" in failing("score", "pixels", "scores.h5")


def test_weights_go_to_the_models_that_read_them(cli, failing, real_data):
    weights = real_data("weights_cifar_resnet")
    arguments = ["--weights", weights, *NO_RESAMPLING, "--no-controls", "--layers", "conv1"]
    code, out, err = cli("score", "resnet20-cifar,resnet20-cifar-untrained", *SMALL, *arguments)
    assert code == 0 and "resnet20-cifar-untrained" in out, err
    code, out, err = cli("score", "pixels,resnet20-cifar", *SMALL, "--weights", weights, *NO_RESAMPLING)
    assert code == 0 and "pixels" in out, err
    assert "has no weights" in failing("score", "gabor", *SMALL, "--weights", weights)
