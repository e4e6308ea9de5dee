"""Extraction: right values, from the right layer, never stale."""

import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from neuralign.datasets import StimulusSet
from neuralign.encoders import Features, ImageInputs, extract, load_model
from neuralign.encoders.features.digest import digest_of
from neuralign.encoders.features.hooks import choose, trace
from neuralign.encoders.features.reduce import parse_reduction
from neuralign.encoders.features.store import Entry


@pytest.fixture
def stimuli():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 20, 24, 3), np.uint8)
    return StimulusSet.from_images(pixels)


class InPlace(nn.Module):
    """Every way in which a later operation may overwrite what a hook was handed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.residual = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)
        self.n_heads = 0

    def forward(self, x):
        x = self.relu(self.conv(x))
        x += self.residual(x)
        self.n_heads += 1
        return self.head(x.mean((2, 3)))


READ = ImageInputs((16, 16))


def build(seed=0):
    torch.manual_seed(seed)
    return InPlace().eval()


def inputs(stimuli):
    return torch.stack([READ.read(stimuli.image(i)) for i in range(len(stimuli))])


def test_in_place_operations_do_not_reach_what_was_recorded(stimuli):
    module = build()
    features = extract(module, stimuli, ["conv", "relu", "residual"], preprocess=READ, cache=False)
    with torch.no_grad():
        conv = module.conv(inputs(stimuli))
        relu = conv.clamp_min(0)
        residual = module.residual(relu)
    for layer, truth in {"conv": conv, "relu": relu, "residual": residual}.items():
        found = features[layer]
        assert found.shape == (7, 14 * 14, 4)
        np.testing.assert_allclose(found, truth.flatten(2).transpose(1, 2).numpy(), atol=1e-6)
        assert features.grids[layer] == (14, 14)
    assert (features["conv"] < 0).any()  # the rectifier writes into this very tensor


def test_forward_pass_ends_with_the_last_layer_needed(stimuli):
    module = build()
    extract(module, stimuli, "conv", preprocess=READ, cache=False, batch_size=7)
    assert module.n_heads == 1  # the trace alone went through


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_batch_size_does_not_change_features(stimuli, batch_size):
    whole = extract(build(), stimuli, "all", preprocess=READ, cache=False, batch_size=7)
    parts = extract(build(), stimuli, "all", preprocess=READ, cache=False, batch_size=batch_size)
    for layer in whole:
        np.testing.assert_allclose(parts[layer], whole[layer], atol=1e-6)


def test_module_used_twice_gives_each_of_its_calls(stimuli):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.step(self.step(x) - 0.5)

    features = extract(Twice(), stimuli, "all", preprocess=READ, cache=False)
    x = inputs(stimuli).clamp_min(0)
    truth = x.flatten(2).transpose(1, 2).numpy()
    assert features.layers == ["step", "step@2", "output"]
    np.testing.assert_allclose(features["step"], truth, atol=1e-6)
    np.testing.assert_allclose(features["step@2"], np.maximum(truth - 0.5, 0), atol=1e-6)


@pytest.mark.parametrize("reduce", [None, "mean", 3, 50])
def test_reductions_of_maps(reduce):
    maps = torch.arange(2 * 3 * 6 * 6).reshape(2, 3, 6, 6).float()
    found = parse_reduction(reduce)(maps)
    if reduce == "mean":
        np.testing.assert_allclose(found, maps.mean((2, 3)))
    elif reduce == 3:  # row by row, as an image is read
        truth = [[maps[i, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((1, 2)) for r in range(3) for c in range(3)]
                 for i in range(2)]  # fmt: skip
        np.testing.assert_allclose(found, torch.stack([torch.stack(t) for t in truth]))
    else:
        np.testing.assert_allclose(found, maps.flatten(2).transpose(1, 2))


def test_reductions_of_tokens():
    tokens = torch.arange(2 * 5 * 3).reshape(2, 5, 3).float()
    np.testing.assert_allclose(parse_reduction("cls")(tokens), tokens[:, 0])
    np.testing.assert_allclose(parse_reduction("mean")(tokens), tokens.mean(1))
    with pytest.raises(ValueError, match="map of channels"):
        parse_reduction("cls")(torch.zeros(1, 2, 3, 3))
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        parse_reduction("meen")
    with pytest.raises(ValueError, match="at least 1 cell"):
        parse_reduction(0)


def test_choice_of_layers():
    module = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    calls = trace(module, {"x": torch.zeros(1, 2)})
    assert choose(calls, "all", []) == ["0.0", "0.1", "0", "1", "output"]
    assert choose(calls, "*", []) == ["0", "1", "output"]  # a star does not cross a dot
    assert choose(calls, "0.*, output", []) == ["0.0", "0.1", "output"]
    assert choose(calls, None, ["1"]) == ["1"]
    with pytest.raises(ValueError, match=r"layers='0.2' is unknown; did you mean '0\.\d'"):
        choose(calls, ["0.2"], [])


# ------------------------------------------------------------------------------------------------ the store


def keys(stimuli, module=None, cache=None, **options):
    options = {"layers": "conv", "preprocess": READ, "cache": cache} | options
    return extract(module or build(), stimuli, **options).keys_["conv"]


def test_key_changes_with_everything_that_features_depend_on(stimuli, tmp_path):
    base = keys(stimuli, cache=tmp_path)
    assert keys(stimuli, cache=tmp_path) == base
    assert keys(stimuli, cache=tmp_path, batch_size=2) == base

    weight = build()
    weight.residual.weight.data[0, 0, 0, 0] += 1e-6
    setting = build()
    setting.conv.stride = (2, 2)
    plain = build()
    plain.n_heads = 5
    images = np.stack([np.asarray(stimuli.image(i)) for i in range(len(stimuli))])
    images[3, 4, 5, 1] ^= 1
    pixel = StimulusSet.from_images(images, ids=stimuli.ids)
    changed = [
        keys(stimuli, weight, tmp_path),
        keys(stimuli, setting, tmp_path),
        keys(stimuli, plain, tmp_path),
        keys(pixel, cache=tmp_path),
        keys(stimuli, cache=tmp_path, preprocess=ImageInputs((16, 16), std=(1.0, 1.0, 1.01))),
        keys(stimuli, cache=tmp_path, reduce="mean"),
        keys(stimuli[::-1], cache=tmp_path),
    ]
    assert len({base, *changed}) == 1 + len(changed)


def test_constant_behind_a_custom_preprocessing_changes_the_key(stimuli, tmp_path):
    def reader(scale):
        return lambda image: READ.read(image) * scale

    assert keys(stimuli, cache=tmp_path, preprocess=reader(1.0)) != keys(
        stimuli, cache=tmp_path, preprocess=reader(1.1)
    )


def test_other_code_of_the_module_changes_the_key():
    class Other(InPlace):
        def forward(self, x):
            return super().forward(x) * 2

    torch.manual_seed(0)
    other = Other().eval()
    other.__class__.__name__ = "InPlace"  # the printed module is the same
    assert repr(other) == repr(build()) and digest_of(other) != digest_of(build())


def test_stored_features_are_read_back_and_not_computed(stimuli, tmp_path, monkeypatch):
    first = extract(build(), stimuli, "conv", preprocess=READ, cache=tmp_path)
    monkeypatch.setattr("neuralign.encoders.features.extract._compute", None)  # calling it would fail
    second = extract(build(), stimuli, "conv", preprocess=READ, cache=tmp_path)
    np.testing.assert_array_equal(first["conv"], second["conv"])
    assert isinstance(second["conv"], np.memmap)


@pytest.mark.parametrize("damage", ["truncated", "no entry", "wrong shape"])
def test_damaged_entry_is_computed_again(stimuli, tmp_path, damage):
    first = extract(build(), stimuli, "conv", preprocess=READ, cache=tmp_path)
    folder = Entry(tmp_path, first.keys_["conv"]).folder
    if damage == "truncated":
        data = (folder / "features.npy").read_bytes()
        (folder / "features.npy").write_bytes(data[: len(data) // 2])
    elif damage == "no entry":
        (folder / "entry.json").unlink()
    else:
        np.save(folder / "features.npy", np.zeros((2, 2)))
    again = extract(build(), stimuli, "conv", preprocess=READ, cache=tmp_path)
    np.testing.assert_array_equal(first["conv"], again["conv"])
    assert Entry(tmp_path, first.keys_["conv"]).read() is not None


def test_nothing_is_left_of_an_interrupted_write(stimuli, tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        extract(build(), stimuli, "conv", preprocess=READ, cache=tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


# ------------------------------------------------------------------------------------------------ bad input


def test_nan_features_are_refused_by_layer_and_stimulus(stimuli):
    class Breaks(nn.Module):
        def forward(self, x):
            third = (x == inputs(stimuli)[2]).flatten(1).all(1)[:, None, None, None]
            return torch.where(third, torch.nan, x)

    with pytest.raises(ValueError, match=r"layer 'output' of Breaks is NaN .* 1 of 7 stimuli .*'image-00003'"):
        extract(Breaks(), stimuli, "output", preprocess=READ, cache=False)


def test_bad_arguments(stimuli):
    with pytest.raises(ValueError, match="no preprocessing; pass preprocess="):
        extract(build(), stimuli)
    with pytest.raises(ValueError, match=r"returned shape \(16,\)"):
        extract(build(), stimuli, preprocess=lambda image: torch.zeros(16), cache=False)
    with pytest.raises(ValueError, match="kind 'sentence'; this model reads stimuli of kind 'image'"):
        extract("pixels", StimulusSet.from_sentences(["a b"]), cache=False)
    with pytest.raises(ValueError, match="batch_size=0"):
        extract("pixels", stimuli, batch_size=0, cache=False)
    with pytest.raises(ValueError, match="device='cupboard' is unknown"):
        extract("pixels", stimuli, device="cupboard", cache=False)
    with pytest.raises(ValueError, match="model='gabr' is unknown; did you mean 'gabor'"):
        load_model("gabr")
    features = extract("pixels", stimuli, cache=False)
    with pytest.raises(KeyError, match="did you mean 'pixels'"):
        features["pixel"]
    with pytest.raises(ValueError, match="lack 1 of 2 stimuli"):
        features.rows([stimuli.ids[0], "elsewhere"])
    with pytest.raises(ValueError, match="has 2 rows; expected one per stimulus, 3"):
        Features("mine", ("a", "b", "c"), {"layer": np.zeros((2, 4))})


# ------------------------------------------------------------------------------------------------ models


def test_factory_by_name(stimuli, tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn
            def tiny():
                return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
            def read(image):
                import numpy as np
                return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1) / 255
            def with_reader():
                return tiny(), read
            def not_a_module():
                return 3
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    first = extract("my_models:with_reader", stimuli, cache=False)
    assert first.layers == ["0", "1"] and first["1"].shape == (7, 5)
    again = extract("my_models:with_reader", stimuli, cache=False)
    np.testing.assert_array_equal(first["1"], again["1"])  # random weights, but by seed
    other = extract("my_models:with_reader", stimuli, cache=False, seed=1)
    assert np.abs(first["1"] - other["1"]).max() > 1e-3
    with pytest.raises(ValueError, match="no preprocessing"):
        load_model("my_models:tiny")
    with pytest.raises(ValueError, match="gave int"):
        load_model("my_models:not_a_module")
    with pytest.raises(ValueError, match="has no 'absent'"):
        load_model("my_models:absent")
    with pytest.raises(ValueError, match="no module 'my_modelz'"):
        load_model("my_modelz:tiny")
    sys.modules.pop("my_models")


def test_untrained_copy_draws_every_parameter_anew_by_seed(stimuli):
    module = build()
    first, same, other = (load_model(module, untrained=True, seed=s, preprocess=READ) for s in (1, 1, 2))
    assert first.name == "InPlace-untrained"
    for name, parameter in module.named_parameters():
        a, b, c = (dict(m.module.named_parameters())[name] for m in (first, same, other))
        assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a, parameter)

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x

    with pytest.raises(ValueError, match=r"1 parameters have no initialisation .*scale"):
        load_model(Bare(), untrained=True, preprocess=READ)


def test_weights_that_are_missing_or_hostile(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"resnet20-\*\.th of resnet20-cifar there. Get it from GitHub"):
        load_model("resnet20-cifar", weights=tmp_path)

    class Hostile:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"state_dict": Hostile()}, tmp_path / "resnet20-hostile.th")
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        load_model("resnet20-cifar", weights=tmp_path)
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, tmp_path / "resnet20-hostile.th")
    with pytest.raises(ValueError, match="do not fit resnet20-cifar"):
        load_model("resnet20-cifar", weights=tmp_path)


def test_cifar_resnet_matches_a_plain_forward_pass(stimuli):
    model = load_model("resnet20-cifar-untrained", seed=3)
    features = extract(model, stimuli, cache=False)
    x = torch.stack([model.inputs.read(stimuli.image(i)) for i in range(len(stimuli))])
    with torch.no_grad():
        truth = model.module(x).numpy()
    assert features.layers == ["conv1", "layer1", "layer2", "layer3", "linear"]
    assert [features[layer].shape[1:] for layer in features] == [(1024, 16), (1024, 16), (256, 32), (64, 64), (10,)]
    np.testing.assert_allclose(features["linear"], truth, atol=1e-5)
