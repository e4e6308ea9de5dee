"""Names of layers: blocks, depths, facets and the tree, over every family of models."""

import numpy as np
import pytest
import torch
from torch import nn

from neuralign.encoders.features.facets import FACETS
from neuralign.encoders.features.hooks import collect, shapes, trace
from neuralign.encoders.features.layers import Call, at_depth, blocks, choose, final_norm, layer_tree, taps

from .tiny_transformers import FAMILIES


def traced(module, shape, key="x"):
    torch.manual_seed(0)
    return trace(module.eval(), {key: torch.randn(2, *shape)})


def family_of(name):
    family = FAMILIES[name]
    module = family.build()
    batch = family.batch(2) | family.options
    return family, module, batch, trace(module, batch)


def whole(tensor):
    return tensor


# ------------------------------------------------------------------------------------------------ blocks


class Bottleneck(nn.Module):
    def __init__(self, wide, narrow, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(wide, narrow, 1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride, 1)

    def forward(self, x):
        return self.conv2(self.relu(self.conv1(x)))


class ConvNet(nn.Module):
    """As torchvision's ResNet: four attributes that are rows of one class, and a head heavier than any of them."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.layer1 = nn.Sequential(Bottleneck(8, 8), Bottleneck(8, 8))
        self.layer2 = nn.Sequential(Bottleneck(8, 16, 2), Bottleneck(16, 16), Bottleneck(16, 16))
        self.layer3 = nn.Sequential(Bottleneck(16, 24, 2))
        self.fc = nn.Linear(24, 900)

    def forward(self, x):
        return self.fc(self.layer3(self.layer2(self.layer1(self.conv1(x)))).mean((2, 3)))


class Staged(nn.Module):
    """As Swin or ConvNeXt: a list of stages, each a downsampling and a list of blocks."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleDict(
                {
                    "down": nn.Conv2d(width // 2, width, 2, 2),
                    "blocks": nn.Sequential(*(Bottleneck(width, width) for _ in range(depth))),
                }
            )
            for width, depth in ((8, 1), (16, 3))
        )

    def forward(self, x):
        for stage in self.stages:
            x = stage["blocks"](stage["down"](x))
        return x


def test_blocks_of_networks_in_stages():
    module = ConvNet()
    assert blocks(module, traced(module, (3, 16, 16))) == [
        *("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer2.2", "layer3.0")
    ]
    module = Staged()
    assert blocks(module, traced(module, (4, 16, 16))) == [
        *("stages.0.blocks.0", "stages.1.blocks.0", "stages.1.blocks.1", "stages.1.blocks.2")
    ]


def test_blocks_are_those_with_the_parameters_and_not_the_longest_list():
    class Speech(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Sequential(nn.Conv1d(2, 2, 1), nn.GELU()) for _ in range(7))
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)) for _ in range(3))

        def forward(self, x):
            for conv in self.convs:
                x = conv(x)
            for layer in self.layers:
                x = layer(x)
            return x

    module = Speech()
    assert blocks(module, traced(module, (2, 16))) == ["layers.0", "layers.1", "layers.2"]


def test_blocks_that_share_their_weights_are_calls():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))])

        def forward(self, x):
            for _ in range(3):
                x = self.layers[0](x)
            return x

    module = Shared()
    calls = traced(module, (4,))
    assert blocks(module, calls) == ["layers.0", "layers.0@2", "layers.0@3"]
    assert choose(calls, ["depth:0.6"], [], module=module) == ["layers.0@2"]
    found = collect(module, {"x": torch.ones(2, 4)}, taps(module, ["layers.0@2", "layers.0@3/input"]), whole)
    assert torch.equal(found["layers.0@2"], found["layers.0@3/input"])


def test_models_without_lists_are_their_direct_parts():
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU())
    assert blocks(module, traced(module, (3, 4))) == ["0", "1", "2"]
    module = nn.Linear(4, 2)
    assert blocks(module, traced(module, (4,))) == ["output"]


def test_blocks_are_of_the_tower_that_ran():
    from transformers import CLIPConfig, CLIPModel

    from .tiny_transformers import PATCHES, WIDTH

    vision = PATCHES | {"num_hidden_layers": 2}
    text = WIDTH | {"vocab_size": 50, "max_position_embeddings": 32, "eos_token_id": 49, "hidden_size": 64}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    clip = CLIPModel(config).eval()

    class Tower(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.clip, self.kind = clip, kind

        def forward(self, x):
            return getattr(self.clip, f"{self.kind}_model")(x).last_hidden_state

    seen = Tower("vision")
    assert blocks(seen, traced(seen, (3, 32, 32))) == [f"clip.vision_model.encoder.layers.{i}" for i in range(2)]
    read = Tower("text")
    calls = trace(read, {"x": torch.randint(0, 50, (2, 6))})
    assert blocks(read, calls) == [f"clip.text_model.encoder.layers.{i}" for i in range(3)]
    assert choose(calls, "blocks/q", [], module=read)[0] == "clip.text_model.encoder.layers.0/q"


# ------------------------------------------------------------------------------------------------ choice


def test_depth_is_the_nearest_block():
    row = [f"b.{i}" for i in range(4)]
    expected = {0: "b.0/input", 0.1: "b.0/input", 0.2: "b.0", 0.25: "b.0", 0.4: "b.1", 0.9: "b.3", 1: "b.3"}
    assert {depth: at_depth(row, depth) for depth in expected} == expected
    assert [at_depth(row, f"depth:{i / 4}") for i in range(1, 5)] == row
    assert at_depth(row[:3], 0.5) == "b.1"  # of two that are as near, the deeper: the one in the middle
    for depth in (-0.1, 1.01, "depth:", "depth:half", float("nan")):
        with pytest.raises(ValueError, match=r"expected a relative depth, from 0 .* to 1"):
            at_depth(row, depth)


def test_choice_by_depth_blocks_and_facets():
    _, module, _, calls = family_of("ViT")

    def chosen(layers):
        return choose(calls, layers, ["layers.1"], "tiny", module)

    every = [f"layers.{i}" for i in range(3)]
    assert chosen("blocks") == every
    assert chosen(None) == ["layers.1"]
    assert chosen(1 / 3) == chosen("depth:0.33") == ["layers.0"]
    assert chosen([0.0, 1.0, 0.7]) == ["layers.0/input", "layers.1", "layers.2"]
    assert chosen("blocks/attn") == [f"{block}/attn" for block in every]
    assert chosen("layers.*/attn, layers.1, layernorm") == [
        *("layers.0/attn", "layers.1/attn", "layers.1", "layers.2/attn", "layernorm")
    ]
    assert chosen("depth:1/v") == ["layers.2/v"]
    names = [call.layer for call in calls]
    assert chosen("all") == names and "layers.1.attention.q_proj" in names
    order = chosen(["layers.1/mlp", "layers.1/input", "layers.1/map", "layers.1/q", "layers.1", "layers.0"])
    assert order == ["layers.0", "layers.1/input", "layers.1/q", "layers.1/map", "layers.1/mlp", "layers.1"]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.q])
def test_layers_are_chosen_in_the_order_in_which_they_are_computed(name):
    _, module, batch, calls = family_of(name)
    wanted = [f"blocks/{facet}" for facet in FACETS] + ["blocks"]
    names = choose(calls, wanted[::-1], [], module=module)
    assert len(names) == 3 * 8
    told = []
    collect(module, batch, taps(module, names, calls), whole, sink=lambda layer, _: told.append(layer))
    # queries, keys and values of one fused projection come together, as do a module's output and its map
    assert told.index(names[0]) == 0 and told[-1] == names[-1] == names[-1].partition("/")[0]
    blocks_ = [layer.partition("/")[0] for layer in told]
    assert blocks_ == [layer.partition("/")[0] for layer in names]


def test_unknown_layers_are_named_with_what_is_near():
    _, module, _, calls = family_of("GPT-2")

    def refused(layers, match):
        with pytest.raises(ValueError, match=match):
            choose(calls, layers, [], "tiny", module)

    refused("h.1.atn", r"layers='h.1.atn' is unknown; did you mean .*'h.1.attn'.*These are the layers of tiny")
    refused("h.7", r"layers='h.7' is unknown; did you mean 'h.\d'")
    refused("h.7/q", r"layers='h.7' is unknown; did you mean 'h.\d'")
    refused("h.1/query", r"facet of layers='h.1'='query' is unknown|facet='query' is unknown")
    refused("ln_f/q", r"layers='ln_f/q': nothing in 'ln_f' .* facets found there: 'input'")
    refused("depth:2", r"layers='depth:2'; expected a relative depth")
    refused([1.5], r"layers='depth:1.5'; expected a relative depth")
    refused("block", r"layers='block' is unknown.*'blocks'")
    with pytest.raises(ValueError, match=r"layers='h.1/nothing': 'h.1' has no|'h.1/nothing'"):
        choose(calls, "h.1/nothing", [])
    with pytest.raises(ValueError, match=r"layers='ln_f/k': 'ln_f' has no part that is known to be its 'k'"):
        taps(module, ["ln_f/k"])


def test_projections_that_are_interleaved_or_grouped_are_not_cut_in_three():
    class Attention(nn.Module):
        def __init__(self, name, width):
            super().__init__()
            self.add_module(name, nn.Linear(8, width))

        def forward(self, x):
            return next(self.children())(x)[..., :8]

    class Block(nn.Module):
        def __init__(self, *fused):
            super().__init__()
            self.attention = Attention(*fused)

        def forward(self, x):
            return x + self.attention(x)

    for name, width, known in (
        *(("qkv", 24, True), ("Wqkv", 24, True)),
        *(("query_key_value", 24, False), ("qkv", 12, False)),
    ):
        module = nn.Sequential(Block(name, width), Block(name, width))
        calls = traced(module, (5, 8))
        if known:
            assert choose(calls, "blocks/k", [], module=module) == ["0/k", "1/k"]
        else:
            with pytest.raises(ValueError, match=r"layers='blocks/k': nothing in '0' .* 'input', 'attn'"):
                choose(calls, "blocks/k", [], module=module)


def test_what_only_goes_by_the_name_of_attention():
    class Excited(nn.Module):
        """A convolution with squeeze-and-excitation, which RegNet calls attention."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())

        def forward(self, x):
            return x + self.conv(x) * self.attention(x)

    class Windowed(nn.Module):
        """Attention over windows, whose queries have no row per stimulus."""

        def __init__(self):
            super().__init__()
            self.attention = nn.Module()
            self.attention.query = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.attention.query(x.reshape(-1, 2, 4)).reshape(x.shape)

    for block, shape in ((Excited, (4, 6, 6)), (Windowed, (6, 4))):
        module = nn.Sequential(block(), block())
        calls = traced(module, shape)
        for facet in ("q", "attn"):
            with pytest.raises(ValueError, match=f"layers='blocks/{facet}': nothing in '0' .* its '{facet}'"):
                choose(calls, f"blocks/{facet}", [], module=module)
        tree = layer_tree(module, calls)
        assert not tree["layer"].str.contains("/attn|/q").any() and tree["layer"].str.contains("/input").any()


def test_own_names_with_a_slash_come_first():
    module = nn.ModuleDict({"a/q": nn.Linear(3, 2)})
    module.forward = lambda x: module["a/q"](x)
    calls = traced(module, (3,))
    assert choose(calls, "a/q", [], module=module) == ["a/q"]
    assert taps(module, ["a/q"], calls)["a/q"].module == "a/q"


# ------------------------------------------------------------------------------------------------ tree


@pytest.mark.parametrize("name", FAMILIES)
def test_tree_of_layers(name):
    family, module, batch, calls = family_of(name)
    tree = layer_tree(module, calls)
    assert list(tree.columns) == ["layer", "parent", "depth", "relative_depth", "shape", "kind"]
    assert tree["layer"].is_unique
    assert [row for row in tree["layer"] if row in {call.layer for call in calls}] == [call.layer for call in calls]
    rows = tree.set_index("layer")
    n_blocks = len(family.blocks)
    assert tuple(rows.index[rows["kind"] == "block"]) == family.blocks
    np.testing.assert_allclose(rows.loc[list(family.blocks), "relative_depth"], np.arange(1, n_blocks + 1) / n_blocks)
    modules = rows[rows["kind"] != "facet"]
    assert modules["depth"].is_monotonic_increasing
    stem = modules[modules["kind"] == "stem"]
    assert (stem["depth"] == 0).all() and len(stem)
    assert not any(layer.startswith(family.blocks[0]) for layer in stem.index)
    assert rows.loc["output", ["parent", "relative_depth", "kind"]].tolist() == ["", 1.0, "module"]
    assert all(parent in rows.index for parent in rows["parent"] if parent)

    facets = rows[rows["kind"] == "facet"]
    has = {"input"} | {which for which in ("q", "k", "v", "attn", "mlp", "map") if getattr(family, which)}
    assert {layer.rpartition("/")[2] for layer in facets.index} == has
    assert (facets["parent"] == [layer.rpartition("/")[0] for layer in facets.index]).all()
    found = shapes(module, batch, taps(module, list(facets.index), calls))
    for layer, shape in facets["shape"].items():
        if shape is None:
            assert layer.endswith("/map")
        else:
            assert shape == found[layer], layer


def test_relative_depth_selects_what_the_tree_says():
    _, module, _, calls = family_of("Llama")
    tree = layer_tree(module, calls)
    for row in tree[tree["kind"] == "block"].itertuples():
        assert choose(calls, row.relative_depth, [], module=module) == [row.layer]
    assert final_norm(module, calls) == "norm"


# ------------------------------------------------------------------------------------------------ axes


@pytest.mark.parametrize("name", ["wav2vec 2.0", "wav2vec 2.0, stable norm", "HuBERT, stable norm", "Whisper"])
def test_convolutions_over_time_are_told_from_tokens(name):
    """By count: 24 or 32 features in these models, and another number of frames in every layer."""
    _, module, batch, calls = family_of(name)
    found = shapes(module, batch, taps(module, [call.layer for call in calls], calls))
    features = {20, 24, 32, 48}
    turned = []
    for call in calls:
        time, width = found[call.layer]
        if call.layer.startswith("feature_extractor") or call.layer in ("conv1", "conv2"):
            assert width in (24, 32) and (time, width) in (call.shape, call.shape[::-1])
        else:
            assert width in features, call
        if found[call.layer] != call.shape:
            turned.append(call.layer)
    first = {"Whisper": {"conv1", "conv2"}}.get(name, {"feature_extractor.conv_layers.0.conv", "feature_extractor"})
    assert first <= set(turned)
    assert not any("layers." in layer and "conv_layers" not in layer for layer in turned)


def test_channels_of_convnext_are_found_on_either_side():
    from transformers import ConvNextConfig, ConvNextModel

    module = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2)).eval()
    calls = traced(module, (3, 48, 48), "pixel_values")
    found = {call.layer: call for call in calls}
    block = "encoder.stages.1.layers.1"
    expected = {"dwconv": (16, 6, 6), "layernorm": (16, 6, 6), "pwconv1": (64, 6, 6), "act": (64, 6, 6)}
    for part, shape in (expected | {"pwconv2": (16, 6, 6), "drop_path": (16, 6, 6)}).items():
        assert found[f"{block}.{part}"].canonical_shape == shape, part
    assert found[block].canonical_shape == found["encoder"].canonical_shape == (16, 6, 6)
    assert found[f"{block}.pwconv1"].shape == (6, 6, 64)


@pytest.mark.parametrize(("name", "layer"), [("VideoMAE", "embeddings.patch_embeddings.projection"), ("V-JEPA 2", "")])
def test_patches_of_clips_are_volumes(name, layer):
    *_, calls = family_of(name)
    layer = layer or "encoder.embeddings.patch_embeddings.proj"
    (call,) = (call for call in calls if call.layer == layer)
    assert call.layout == "ncthw" and call.canonical_shape == (call.shape[0], 2, 4, 4)


def test_axes_given_by_pattern_come_before_what_is_read_off():
    module = nn.Sequential(nn.Identity(), nn.Conv1d(3, 5, 1)).eval()
    x = torch.randn(2, 3, 7)
    calls = traced(module, (3, 7))
    assert {call.layer: call.layout for call in calls} == {"0": "", "1": "nct", "output": "nct"}
    assert {layer: tap.layout for layer, tap in taps(module, ["0", "1"], calls).items()} == {"0": "", "1": "nct"}
    given = taps(module, ["0", "1"], calls, {"*": "nct", "1": "ntf"})
    assert [tap.layout for tap in given.values()] == ["nct", "nct"]
    assert collect(module, {"x": x}, given, whole)["0"].shape == (2, 7, 3)
    assert Call("a", (3, 7), "nct").canonical_shape == (7, 3)
    assert Call("a", (3, 7)).canonical_shape == (3, 7)


def test_norms_tell_by_the_axis_that_they_fit():
    class OverChannels(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    module = nn.Sequential(OverChannels(6), nn.GELU()).eval()
    calls = traced(module, (6, 4, 4))
    assert [call.layout for call in calls] == ["nchw", "nchw", "nchw"]
    module = nn.Sequential(nn.LayerNorm(6), nn.GELU()).eval()
    assert [call.layout for call in traced(module, (4, 5, 6))] == ["nhwc", "nhwc", "nhwc"]
    assert [call.layout for call in traced(module, (6,))] == ["nf", "nf", "nf"]
