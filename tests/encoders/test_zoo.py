"""Models of torchvision, timm and open_clip: through stand-ins for the packages, and the packages where installed."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from neuralign.datasets import StimulusSet
from neuralign.encoders import extract, load_model
from neuralign.encoders.features.adapters.vision_zoo import TorchvisionInputs
from neuralign.encoders.features.vision import special_tokens

ABSENT = "{} is not installed"


@pytest.fixture
def stimuli():
    return StimulusSet.from_images(np.random.default_rng(0).integers(0, 256, (3, 40, 53, 3), np.uint8))


def small(seed=None):
    if seed is not None:
        torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(2))


class Net(nn.Module):
    """What a factory of a package returns: random, or with the "published" weights of seed 7."""

    def __init__(self, published=False, size=16):
        super().__init__()
        if published:
            torch.manual_seed(7)
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def of(package, **parts):
    module = types.ModuleType(package)
    vars(module).update(parts)
    return module


@pytest.fixture
def torchvision(monkeypatch):
    """The part of torchvision's interface that is used, with its preset of transforms."""

    class Preset:
        crop_size, resize_size = [16], [20]
        mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
        interpolation = types.SimpleNamespace(value="bilinear")

    class Weights(list):
        DEFAULT = types.SimpleNamespace(transforms=Preset, meta={})

    class Detection:
        mean = std = None

    published = {"net": Weights([1]), "bare": Weights(), "boxes": Weights([1])}
    published["boxes"].DEFAULT = types.SimpleNamespace(transforms=Detection, meta={})
    models = types.SimpleNamespace(
        list_models=lambda: list(published),
        get_model_weights=published.get,
        get_model=lambda name, weights: Net(weights is not None),
    )
    monkeypatch.setitem(sys.modules, "torchvision", of("torchvision", models=models))


@pytest.fixture
def timm(monkeypatch):
    config = {
        "input_size": (3, 16, 16),
        "crop_pct": 0.8,
        "crop_mode": "center",
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.3, 0.4),
        "interpolation": "bicubic",
    }

    def create_model(name, pretrained):
        if name != "net.tag":
            raise RuntimeError(f"Unknown model ({name})")
        net = Net(pretrained)
        net.pretrained_cfg = {"license": "mit", "paper_name": "A paper", "hf_hub_id": "timm/net.tag"}
        return net

    module = of("timm", create_model=create_model, list_models=lambda: ["net", "net.tag"])
    monkeypatch.setitem(sys.modules, "timm", module)
    monkeypatch.setitem(sys.modules, "timm.data", of("timm.data", resolve_model_data_config=lambda model: config))
    return config


@pytest.fixture
def open_clip(monkeypatch):
    config = {
        "size": (16, 16),
        "mode": "RGB",
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.3, 0.4),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }

    def create_model(architecture, pretrained):
        whole = nn.Module()
        whole.visual = Net(pretrained == "tag")
        whole.text = nn.Linear(2, 2)
        return whole

    module = of(
        "open_clip",
        create_model=create_model,
        list_models=lambda: ["Net-B"],
        list_pretrained_tags_by_model=lambda name: ["tag"],
        get_model_preprocess_cfg=lambda model: config,
    )
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return config


NAMES = {"torchvision": "torchvision:net", "timm": "timm:net.tag", "open_clip": "open_clip:Net-B/tag"}


def by_hand(image, size, shortest, method, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)):
    """Resize of the shorter side and centre crop as torchvision words them, in PIL and numpy."""
    width, height = image.size
    if width <= height:
        image = image.resize((shortest, int(shortest * height / width)), method)
    else:
        image = image.resize((int(shortest * width / height), shortest), method)
    top, left = round((image.height - size) / 2.0), round((image.width - size) / 2.0)
    image = image.crop((left, top, left + size, top + size))
    return ((np.asarray(image, float) / 255 - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("package", "shortest", "method"), [("torchvision", 20, 2), ("timm", 20, 3), ("open_clip", 16, 3)]
)
def test_weights_and_preprocessing_come_from_the_package(request, stimuli, package, shortest, method):
    request.getfixturevalue(package)
    model = load_model(NAMES[package])
    features = extract(model, stimuli, ["conv", "head"], cache=False)
    x = torch.from_numpy(np.stack([by_hand(stimuli.image(i), 16, shortest, method) for i in range(3)])).float()
    net = Net(published=True).eval()
    with torch.no_grad():
        np.testing.assert_allclose(features["head"], net(x), atol=1e-5)
        np.testing.assert_allclose(features["conv"], net.conv(x).flatten(2).transpose(1, 2), atol=1e-5)
    assert features.model == NAMES[package] and model.card.size == "16 x 16"
    assert "mean 0.4/0.5/0.6" in model.card.preprocessing and str(shortest) in model.card.preprocessing


def test_what_the_card_of_timm_says(timm):
    card = load_model("timm:net.tag").card
    assert (card.licence, card.citation, card.source) == ("mit", "A paper", "timm, timm/net.tag")


@pytest.mark.parametrize("package", NAMES)
def test_untrained_copies_follow_the_seed(request, package):
    request.getfixturevalue(package)
    trained = load_model(NAMES[package]).module.conv.weight
    one, same, other = (load_model(f"{NAMES[package]}-untrained", seed=s) for s in (0, 0, 1))
    assert one.name == f"{NAMES[package]}-untrained"
    assert torch.equal(one.module.conv.weight, same.module.conv.weight)
    for weight in (trained, other.module.conv.weight):
        assert (one.module.conv.weight - weight).abs().max() > 1e-3


@pytest.mark.parametrize("package", NAMES)
def test_a_checkpoint_of_ones_own(request, tmp_path, package):
    request.getfixturevalue(package)
    mine = {name: torch.full_like(p, 0.25) for name, p in Net().state_dict().items()}
    if package == "open_clip":  # a checkpoint of the whole, both sides
        mine = {f"visual.{name}": p for name, p in mine.items()}
        mine |= {"text.weight": torch.ones(2, 2), "text.bias": torch.ones(2)}
    torch.save({"state_dict": mine}, tmp_path / "w.pt")
    model = load_model(NAMES[package], weights=tmp_path / "w.pt")
    assert all((p == 0.25).all() for p in model.module.parameters())
    with pytest.raises(ValueError, match="is not read by an untrained model"):
        load_model(NAMES[package], weights=tmp_path / "w.pt", untrained=True)
    torch.save(dict(list(mine.items())[1:]), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=f"do not fit {NAMES[package]}"):
        load_model(NAMES[package], weights=tmp_path / "w.pt")


def test_a_package_that_unpickles_is_held_to_tensors(torchvision, tmp_path, monkeypatch):
    import os

    class Hostile:
        def __reduce__(self):
            return (os.system, (f"touch '{tmp_path / 'ran'}'",))

    torch.save({"a": Hostile()}, tmp_path / "w.pt")

    def get_model(name, weights):
        torch.load(tmp_path / "w.pt", weights_only=False)
        return Net()

    monkeypatch.setattr(sys.modules["torchvision"].models, "get_model", get_model)
    with pytest.raises(Exception, match="eights"):
        load_model("torchvision:net")
    assert not (tmp_path / "ran").exists()


def test_names_that_are_unknown(torchvision, timm, open_clip):
    with pytest.raises(ValueError, match="model='nett' is unknown; did you mean 'net'"):
        load_model("torchvision:nett")
    with pytest.raises(ValueError, match="model='net.tug' is unknown; did you mean 'net.tag'"):
        load_model("timm:net.tug")
    with pytest.raises(ValueError, match="model='Net-L' is unknown; did you mean 'Net-B'"):
        load_model("open_clip:Net-L/tag")
    with pytest.raises(ValueError, match="tag='tug' is unknown; did you mean 'tag'"):
        load_model("open_clip:Net-B/tug")
    with pytest.raises(ValueError, match="'torchvision:bare' has no published weights; pass weights="):
        load_model("torchvision:bare")
    assert load_model("torchvision:bare-untrained").card.size == "224 x 224"


def test_preprocessing_that_cannot_be_told(torchvision, timm, open_clip):
    with pytest.raises(ValueError, match="'torchvision:boxes': its preprocessing is not resize, crop and normalise"):
        load_model("torchvision:boxes")
    timm["crop_mode"] = "border"
    with pytest.raises(ValueError, match="'timm:net.tag' crops by 'border'"):
        load_model("timm:net.tag")
    timm |= {"crop_mode": "squash", "crop_pct": 1.0}
    assert load_model("timm:net.tag").inputs.shortest is None
    timm |= {"crop_mode": "center", "input_size": (3, 16, 20)}
    with pytest.raises(ValueError, match="crops to 16 x 20"):
        load_model("timm:net.tag")
    open_clip["resize_mode"] = "longest"
    with pytest.raises(ValueError, match="'open_clip:Net-B/tag' resizes by 'longest'"):
        load_model("open_clip:Net-B/tag")


@pytest.mark.parametrize("package", NAMES)
def test_a_package_that_is_not_installed(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{package} is not installed.*pip install 'neuralign\[vision\]'"):
        load_model(NAMES[package])
    with pytest.raises(ValueError, match="preprocess= is not read by"):
        load_model(NAMES[package], preprocess=lambda image: image)


@pytest.mark.parametrize("shape", [(40, 53), (53, 40), (37, 37), (300, 17), (16, 16)])
def test_images_of_every_shape_are_cut_as_by_torchvision(shape):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8))
    for size, shortest in ((16, 16), (16, 19), (15, 18), (16, 23)):
        read = TorchvisionInputs((size, size), shortest, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
        np.testing.assert_allclose(read.read(image), by_hand(image, size, shortest, 3), atol=1e-5)


def test_tokens_before_the_patches_are_counted_by_name():
    module = nn.Module()
    module.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
    module.inner = nn.Module()
    module.inner.register_tokens = nn.Parameter(torch.zeros(1, 4, 8))
    module.inner.mask_token = nn.Parameter(torch.zeros(1, 1, 8))
    assert special_tokens(module) == 5
    module.cls_token = None
    module.class_embedding = nn.Parameter(torch.zeros(8))
    assert special_tokens(module) == 5
    assert special_tokens(nn.Linear(2, 2)) == 0


# ------------------------------------------------------------------------------------------------ the packages


def test_torchvision_itself(stimuli):
    torchvision = pytest.importorskip("torchvision", reason=ABSENT.format("torchvision"))
    from torchvision.models.feature_extraction import create_feature_extractor

    model = load_model("torchvision:resnet18-untrained", seed=3)
    transforms = torchvision.models.get_model_weights("resnet18").DEFAULT.transforms()
    x = torch.stack([transforms(stimuli.image(i)) for i in range(3)])
    read = torch.stack([model.inputs.read(stimuli.image(i)) for i in range(3)])
    torch.testing.assert_close(read, x, atol=1e-5, rtol=0)
    nodes = ["layer1.0", "layer2", "layer4.1", "avgpool"]
    with torch.no_grad():
        truth = create_feature_extractor(model.module.eval(), nodes)(x)
    features = extract(model, stimuli, nodes, cache=False)
    for node in nodes:
        expected = truth[node].flatten(2).transpose(1, 2)
        np.testing.assert_allclose(features[node].reshape(expected.shape), expected, atol=1e-4)


def test_timm_itself(stimuli):
    timm = pytest.importorskip("timm", reason=ABSENT.format("timm"))
    model = load_model("timm:resnet18-untrained", seed=3)
    config = timm.data.resolve_model_data_config(model.module)
    transform = timm.data.create_transform(**config, is_training=False)
    for i in range(3):
        torch.testing.assert_close(model.inputs.read(stimuli.image(i)), transform(stimuli.image(i)), atol=1e-5, rtol=0)
    features = extract(model, stimuli, "layer4", cache=False)
    assert features["layer4"].shape == (3, 49, 512)


def test_open_clip_itself(stimuli):
    open_clip = pytest.importorskip("open_clip", reason=ABSENT.format("open_clip"))
    model = load_model("open_clip:ViT-B-32-untrained")
    transform = open_clip.image_transform(224, is_train=False)
    read = model.inputs.read(stimuli.image(0))
    torch.testing.assert_close(read, transform(stimuli.image(0)), atol=1e-5, rtol=0)
    assert extract(model, stimuli, "output", cache=False)["output"].shape == (3, 512)
