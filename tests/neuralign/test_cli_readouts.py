"""Readouts of places on the command line: which encoder a name means, that it is fitted to maps, and how it fails."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator

from neuralign import align, datasets, encoders
from neuralign.cli import main
from neuralign.encoders.routing.attention import AttentionRouter
from neuralign.encoders.routing.in_context import InContextEncoder
from neuralign.encoders.routing.population import PopulationPriorRidge
from neuralign.encoders.spatial.factorized import FactorizedReadout
from neuralign.encoders.spatial.gaussian import GaussianReadout
from neuralign.encoders.spatial.pooling_grid import PoolingGridReadout
from neuralign.encoders.spatial.ridge import RidgeReadout
from neuralign.encoders.spatial.semantic_transformer import SemanticTransformerReadout
from neuralign.options import ENCODERS, TOKEN_ENCODERS
from neuralign.regressors import encoder_named

MEANT = {
    "pooled": RidgeReadout("pooled", criterion="r2", device="cpu"),
    "pca": RidgeReadout("pca", criterion="r2", device="cpu"),
    "pooling-grid": PoolingGridReadout(criterion="r2", device="cpu"),
    "factorized": FactorizedReadout(seed=3, device="cpu"),
    "gaussian": GaussianReadout(seed=3, device="cpu"),
    "semantic": SemanticTransformerReadout(seed=3, device="cpu"),
    "attention": AttentionRouter(seed=3, device="cpu"),
    "population": PopulationPriorRidge(max_dimension=128, seed=3, device="cpu"),
    "in-context": InContextEncoder(seed=3, device="cpu"),
}
QUICK = ["--no-controls", "--bootstrap", 0, "--permutations", 0, "--cv", 2, "--json"]
NO_RESAMPLING = {"cv": 2, "bootstrap": 0, "permutations": 0}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture(scope="module")
def recording():
    return datasets.simulate.visual_cortex(n_stimuli=80, n_units=12, seed=3)


@pytest.fixture(scope="module")
def saved(recording, tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "mine.h5"
    recording.save(path)
    return path


def failure(done):
    """The last line of a command that must fail with one line of its own, without a traceback."""
    code, out, err = done
    assert (code, out) == (1, ""), err
    assert "Traceback" not in err
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def printed(text):
    table = pd.DataFrame(json.loads(text))
    numbers = ("score", "ceiling", "ceiling_low", "normalised", "ci_low", "ci_high", "p")
    return table.astype(dict.fromkeys(numbers, float))


# ------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("name", MEANT)
def test_a_name_means_an_encoder(name):
    found = encoder_named(name, None, 3, "cpu")
    assert type(found) is type(MEANT[name])
    assert found.get_params() == MEANT[name].get_params()


def test_exactly_the_encoders_of_maps_read_tokens():
    known = {name: encoder_named(name, None, 0, "cpu") for name in ENCODERS}
    assert [name for name in ENCODERS if getattr(known[name], "reads_tokens", False)] == list(TOKEN_ENCODERS)
    assert all(isinstance(encoder, BaseEstimator) for encoder in known.values())


def test_help_explains_every_encoder(cli):
    code, out, _ = cli("score", "--help")
    assert code == 0
    text = " ".join(out.split())
    assert [name for name in ENCODERS if name not in text] == []


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("name", ["pooled", "pooling-grid", "factorized", "attention", "population"])
def test_the_table_is_that_of_the_function(cli, recording, saved, name):
    options = ["--encoder", name, "--pool", 3, "--seed", 3, "--device", "cpu", "--regions", "V1,V4"]
    code, out, err = cli("score", "gabor", saved, *options, *QUICK)
    assert code == 0, err
    assert "gabor energy: fitting" in err.splitlines()
    recording = recording.select(region=["V1", "V4"])
    features = encoders.extract("gabor", recording.stimuli, reduce=3)
    assert features.grids == {"energy": (3, 3)}
    expected = align.score(features, recording, MEANT[name], seed=3, **NO_RESAMPLING)
    pd.testing.assert_frame_equal(printed(out), expected, check_dtype=False, rtol=1e-9)
    assert np.isfinite(expected["score"]).all()


def test_places_tell_more_of_v1_than_their_mean(cli, saved):
    """The regions' computations are known: V1 reads Gabor energy at places."""
    v1 = {}
    for name in ("pooling-grid", "pooled"):
        code, out, err = cli("score", "gabor", saved, "--encoder", name, "--regions", "V1", "--pool", 4, *QUICK)
        assert code == 0, err
        v1[name] = printed(out).set_index("metric").loc["r", "score"]
    assert v1["pooling-grid"] > v1["pooled"] + 0.05


@pytest.mark.parametrize("name", ["pooled", "pca", "pooling-grid", "attention"])
def test_one_token_is_enough(cli, recording, saved, name):
    """A layer without places is one token: every readout is then a linear model."""
    code, out, err = cli("score", "texture", saved, "--regions", "V4", "--encoder", name, *QUICK)
    assert code == 0, err
    features = encoders.extract("texture", recording.stimuli)
    linear = align.score(features, recording.select(region="V4"), **NO_RESAMPLING)
    assert printed(out)["score"].iloc[0] == pytest.approx(linear["score"].iloc[0], abs=0.15)


def test_results_say_which_encoder_made_them(cli, saved, tmp_path):
    code, _, err = cli("score", "gabor", saved, "--encoder", "pca", *QUICK, "--out", "x.h5")
    assert code == 0, err
    loaded = align.load_results(tmp_path / "x.h5")
    assert loaded.attrs["evidence"].provenance["options"]["encoder"].startswith("RidgeReadout(")
    assert loaded["formula"].str.contains("RidgeReadout").all()


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("name", "meant"), [("atention", "attention"), ("factorised", "factorized"), ("pooling_grid", "pooling-grid")]
)
def test_misspelt_names_are_answered(cli, saved, name, meant):
    message = failure(cli("score", "gabor", saved, "--encoder", name))
    assert f"encoder='{name}' is unknown; did you mean '{meant}'" in message


def test_sentences_have_no_maps(cli, tmp_path):
    stimuli = datasets.StimulusSet.from_sentences([f"This is sentence {i}." for i in range(20)])
    rng = np.random.default_rng(0)
    presentations = pd.DataFrame({"stimulus": stimuli.ids})
    datasets.Recording(rng.standard_normal((20, 3)), presentations, stimuli=stimuli).save(tmp_path / "read.h5")
    for name in TOKEN_ENCODERS:
        message = failure(cli("score", "word-length", "read.h5", "--encoder", name))
        assert f"--encoder {name} needs maps of images, and the stimuli of read.h5 are of kind 'sentence'" in message
        assert message.endswith("take ridge")


@pytest.mark.parametrize("name", ["factorized", "gaussian", "semantic", "attention"])
def test_too_few_stimuli_are_named(cli, name):
    few = ["simulated", "--select", "n_stimuli=9", "--select", "n_units=8"]
    message = failure(cli("score", "pixels", *few, "--encoder", name, *QUICK))
    assert "at least" in message and "stimuli" in message


def test_tokens_without_a_grid_say_how_to_get_one(cli, saved, tmp_path):
    """With its class token a vision transformer has one token more than places; cells of a grid leave it out."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    settings = {"size": {"height": 32, "width": 32}, "do_normalize": False, "resample": 2}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(settings))
    whole = ["score", tmp_path / "vit", saved, "--encoder", "factorized", "--regions", "V4", *QUICK]
    message = failure(cli(*whole, "--pool", 0))
    assert "has 17 tokens without a grid, and FactorizedReadout needs" in message
    assert "reduce=6" in message and "(height, width)" in message
    code, out, err = cli(*whole, "--pool", 2)
    assert code == 0, err
    assert np.isfinite(printed(out)["score"]).all()


def options_of(monkeypatch, name, **options):
    """Another encoder behind a name, for what options of the command line cannot reach."""
    from neuralign import regressors

    monkeypatch.setitem(regressors.READOUTS, name, (*regressors.READOUTS[name][:2], options))


def test_heads_that_do_not_divide_the_width_are_one_line(cli, saved, monkeypatch):
    options_of(monkeypatch, "attention", heads=5)
    message = failure(cli("score", "gabor", saved, "--encoder", "attention", "--pool", 3, *QUICK))
    assert "heads=5" in message and "divide" in message


def test_training_that_diverges_is_said_and_scored(cli, saved, monkeypatch):
    """The last good weights are kept: a table comes out, and one line on stderr says what to do."""
    options_of(monkeypatch, "attention", lr=1e12, epochs=4)
    code, out, err = cli("score", "gabor", saved, "--encoder", "attention", "--regions", "V1", "--pool", 3, *QUICK)
    assert code == 0, err
    assert np.isfinite(printed(out)["score"]).all()
    warned = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert any("diverged" in line and "lower lr" in line for line in warned), err
