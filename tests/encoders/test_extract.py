"""Extraction: right values, from the right layer, never stale."""

import copy
import os
import sys
import textwrap
import traceback
import types
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from neuralign.datasets import StimulusSet
from neuralign.encoders import Features, ImageInputs, Model, extract, load_model, model_cards, register_model
from neuralign.encoders.features.digest import digest_of
from neuralign.encoders.features.hooks import choose, trace
from neuralign.encoders.features.reduce import parse_reduction


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


def test_what_is_not_read_does_not_change_the_key(stimuli, tmp_path, monkeypatch):
    base = keys(stimuli, cache=tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(__version__="0"))
    assert keys(stimuli, cache=tmp_path) == base
    monkeypatch.setattr("PIL.__version__", "0")
    assert keys(stimuli, cache=tmp_path) != base


def test_a_preprocessing_that_changes_for_real_images_alone_changes_the_key(stimuli, tmp_path, monkeypatch):
    def read(image):  # what it reads at run time is in none of its parts
        return READ.read(image) * (float(os.environ["GAIN"]) if image.size == (24, 20) else 1)

    monkeypatch.setenv("GAIN", "1.0")
    base = keys(stimuli, cache=tmp_path, preprocess=read)
    assert keys(stimuli, cache=tmp_path, preprocess=read) == base
    monkeypatch.setenv("GAIN", "1.5")
    assert keys(stimuli, cache=tmp_path, preprocess=read) != base


# ------------------------------------------------------------------------------------------------ the module


def test_module_comes_back_in_its_mode(stimuli):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    module[1].eval()
    module[1].running_mean += 0.3
    before = copy.deepcopy(module.state_dict())
    for given in (module, Model("mine", module, READ)):
        options = {} if isinstance(given, Model) else {"preprocess": READ}
        features = extract(given, stimuli, "all", reduce="mean", cache=False, **options)
        assert [part.training for part in module.modules()] == [True, True, False, True]
        with pytest.raises(ValueError, match="is unknown"):
            extract(given, stimuli, "absent", cache=False, **options)
        assert module.training and module[2].training
        truth = copy.deepcopy(module).eval()(inputs(stimuli)).mean((2, 3)).detach()
        np.testing.assert_allclose(features["output"], truth, atol=1e-6)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_module_comes_back_to_its_device(stimuli):
    module = build()
    here = extract(module, stimuli, "all", device="cpu", preprocess=READ, cache=False)
    there = extract(module, stimuli, "all", device="cuda", preprocess=READ, cache=False)
    assert {p.device.type for p in module.parameters()} == {"cpu"}
    for layer in here:
        np.testing.assert_allclose(here[layer], there[layer], atol=1e-2)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float64])
def test_inputs_follow_the_precision_of_the_module(stimuli, precision):
    found = extract(build().to(precision), stimuli, "all", preprocess=READ, cache=False)
    truth = extract(build(), stimuli, "all", preprocess=READ, cache=False)
    for layer in truth:
        assert found[layer].dtype == np.float32
        np.testing.assert_allclose(found[layer], truth[layer], atol=0.05 if precision == torch.bfloat16 else 1e-5)


def test_a_first_axis_that_is_not_the_stimuli(stimuli):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Identity()
            self.two = nn.Identity()

        def forward(self, x):
            self.one(x.mean((0, 1))[None])  # one, by accident like a single stimulus
            self.two(x.mean((2, 3))[:2])
            return x

    with pytest.raises(ValueError, match="layers='one' is unknown"):
        extract(Turned(), stimuli, "one", preprocess=READ, cache=False)
    with pytest.raises(ValueError, match=r"layer 'two' gives shape \(2, 3\) for 7 stimuli"):
        extract(Turned(), stimuli, "two", preprocess=READ, cache=False)


@pytest.mark.parametrize("first", [0, 1])
def test_tokens_that_form_a_square_are_places(first):
    maps = torch.arange(2 * 3 * 6 * 6).reshape(2, 3, 6, 6).float()
    tokens = torch.cat([torch.full((2, first, 3), 1e6), maps.flatten(2).transpose(1, 2)], 1)
    for grid in (2, 3, 6, 9):
        reduction = parse_reduction(grid)
        np.testing.assert_allclose(reduction(tokens), reduction(maps))
        assert reduction.map_shape(tuple(tokens.shape[1:])) == (min(grid, 6), min(grid, 6))


def test_tokens_that_form_no_square_are_refused_by_layer(stimuli):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Flatten(2)

        def forward(self, x):
            return self.tokens(x[:, :, :3])

    with pytest.raises(ValueError, match=r"layer 'tokens': reduce=2 .* square.*\(\w+, 3, 48\).*take 'mean'"):
        extract(Tokens(), stimuli, "tokens", 2, preprocess=READ, cache=False)
    with pytest.raises(ValueError, match="reduce=2 averages places of images; of a sentence"):
        extract("pixels", StimulusSet.from_sentences(["a b"]), reduce=2, cache=False)


def test_an_archive_is_opened_once_for_a_batch(tmp_path, monkeypatch):
    from PIL import Image

    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for i in range(6):
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / "one.png")
            archive.write(tmp_path / "one.png", f"{i}.png")
    stimuli = StimulusSet.from_zip(tmp_path / "images.zip")
    opened = []
    whole = zipfile.ZipFile.__init__
    monkeypatch.setattr(zipfile.ZipFile, "__init__", lambda *a, **k: opened.append(1) or whole(*a, **k))
    found = extract("pixels", stimuli, reduce="mean", cache=False)["pixels"]
    np.testing.assert_allclose(found[:, 0], np.arange(6) * 40 / 255, atol=1e-6)
    assert len(opened) <= 3  # the hash, the trace, the batch


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
    with pytest.raises(ValueError, match=r"batch_size=2\.5; expected a whole number"):
        extract("pixels", stimuli, batch_size=2.5, cache=False)
    for device in ("cupboard", None, 3):
        with pytest.raises(ValueError, match=f"device={device!r} is unknown"):
            extract("pixels", stimuli, device=device, cache=False)
    for device in ("meta", "cuda:77"):
        with pytest.raises(ValueError, match=f"device='{device}'"):
            extract("pixels", stimuli, device=device, cache=False)
    with pytest.raises(ValueError, match="layers='pxels' is unknown; did you mean 'pixels'.*the layers of pixels"):
        extract("pixels", stimuli, "pxels", cache=False)
    assert extract("pixels", stimuli, ["all"], cache=False).layers == ["pixels", "output"]
    recording = types.SimpleNamespace(stimuli=stimuli)
    with pytest.raises(ValueError, match="stimuli is a SimpleNamespace; pass brain.stimuli"):
        extract("pixels", recording, cache=False)
    with pytest.raises(ValueError, match="stimuli is a list; expected a StimulusSet: pass brain.stimuli"):
        extract("pixels", [np.zeros((4, 4, 3), np.uint8)], cache=False)
    with pytest.raises(ValueError, match="model='gabr' is unknown; did you mean 'gabor'"):
        load_model("gabr")
    features = extract("pixels", stimuli, cache=False)
    with pytest.raises(KeyError, match="did you mean 'pixels'"):
        features["pixel"]
    with pytest.raises(ValueError, match="1 of 2 stimulus ids are not in the features of pixels: 'elsewhere'"):
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

    def brighter(image):
        return sys.modules["my_models"].read(image) + 1

    mine = extract("my_models:with_reader", stimuli, "0", cache=False, preprocess=brighter)
    np.testing.assert_allclose(mine["0"], first["0"] + 1, atol=1e-6)
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


def test_arguments_that_nothing_reads_are_named(tmp_path):
    model = load_model("resnet20-cifar-untrained")
    with pytest.raises(ValueError, match="weights= is not read by a module"):
        load_model(build(), weights=tmp_path, preprocess=READ)
    with pytest.raises(ValueError, match="weights= is not read by pixels"):
        load_model("pixels", weights=tmp_path)
    with pytest.raises(ValueError, match="weights= is not read by a factory"):
        load_model("torch.nn:ReLU", weights=tmp_path, preprocess=READ)
    with pytest.raises(ValueError, match="weights= is not read by the model resnet20"):
        load_model(model, weights=tmp_path)
    with pytest.raises(ValueError, match="preprocess= is not read by the model resnet20"):
        load_model(model, preprocess=READ)
    with pytest.raises(ValueError, match="preprocess= is not read by gabor"):
        load_model("gabor", preprocess=READ)


def test_a_built_model_can_be_drawn_anew():
    model = Model("mine", build(), READ)
    drawn = load_model(model, untrained=True, seed=4)
    assert drawn.name == "mine-untrained" and drawn.inputs is READ
    assert torch.equal(model.module.conv.weight, build().conv.weight)
    assert not torch.equal(drawn.module.conv.weight, model.module.conv.weight)


def test_a_name_is_registered_once():
    card = next(card for card in model_cards() if card.name == "gabor")
    with pytest.raises(ValueError, match="name='gabor' is taken by neuralign.encoders.features.controls.gabor_model"):
        register_model(card)(lambda weights, untrained, seed: None)


def test_weights_that_are_missing_or_hostile(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"resnet20-\*\.th of resnet20-cifar there. Get it from GitHub"):
        load_model("resnet20-cifar", weights=tmp_path)

    class Hostile:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"state_dict": Hostile()}, tmp_path / "resnet20-hostile.th")
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors") as raised:
        load_model("resnet20-cifar", weights=tmp_path)
    assert "weights_only" not in "".join(traceback.format_exception(raised.value))
    for other in (torch.zeros(3), [1, 2], {"state_dict": 3}, {3: torch.zeros(1)}, {"conv1.weight": 3}):
        torch.save(other, tmp_path / "resnet20-hostile.th")
        with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
            load_model("resnet20-cifar", weights=tmp_path)
    (tmp_path / "resnet20-hostile.th").write_text("<html>not found</html>")
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
