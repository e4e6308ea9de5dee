"""What hooks record: equal to what models say of themselves, to arithmetic, and to modules that overwrite nothing."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neuralign.encoders.features.digest import digest_of
from neuralign.encoders.features.facets import Tap
from neuralign.encoders.features.hooks import canonical, collect, listening, shapes, trace
from neuralign.encoders.features.layers import blocks, choose, final_norm, taps

from .tiny_transformers import FAMILIES

WITH_ATTENTION = [name for name, family in FAMILIES.items() if family.q]


def whole(tensor):
    return tensor


def traced(family, n=3):
    module = family.build()
    batch = family.batch(n) | family.options
    return module, batch, trace(module, batch)


def part_of(value, name):
    """A tensor, or of ``name[1]`` the second third of its last axis."""
    return value.chunk(3, -1)[int(name[-2])] if name.endswith("]") else value


# ------------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_and_final_norm_equal_the_hidden_states(name):
    family = FAMILIES[name]
    module, batch, calls = traced(family)
    assert tuple(blocks(module, calls)) == family.blocks
    assert final_norm(module, calls) == family.norm
    found = collect(module, batch, taps(module, [*family.hidden, family.last], calls), whole)
    with torch.no_grad():
        truth = module(**batch, output_hidden_states=True)
    assert len(truth.hidden_states) == len(family.hidden)
    for layer, hidden in zip(family.hidden, truth.hidden_states, strict=True):
        assert torch.equal(found[layer], hidden), layer
    assert torch.equal(found[family.last], truth.last_hidden_state)
    layers = [found[layer] for layer in family.hidden]
    different = {(round(float(x.double().sum()), 6), tuple(x.shape)) for x in layers}
    assert len(different) == len(layers)  # equality with the wrong layer would be seen


@pytest.mark.parametrize("name", FAMILIES)
def test_input_of_the_first_block_is_the_first_hidden_state(name):
    family = FAMILIES[name]
    module, batch, calls = traced(family)
    (layer,) = choose(calls, 0.0, [], module=module)
    assert layer == f"{family.blocks[0]}/input"
    with torch.no_grad():
        first = module(**batch, output_hidden_states=True).hidden_states[0]
    found = collect(module, batch, taps(module, [layer], calls), whole)[layer]
    if name == "ResNet":
        first = module.embedder(batch["pixel_values"])
    assert torch.equal(found, first)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.norm])
def test_blocks_are_read_before_the_final_norm(name):
    family = FAMILIES[name]
    module, batch, calls = traced(family)
    last = family.blocks[-1]
    found = collect(module, batch, taps(module, [last, family.norm], calls), whole)
    with torch.no_grad():
        normed = module.get_submodule(family.norm)(found[last])
    torch.testing.assert_close(found[family.norm], normed, rtol=0, atol=1e-6)
    assert (found[last] - normed).abs().max() > 0.05


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_facets_are_the_parts_of_the_block(name):
    """By name, and by how a block adds them up."""
    family = FAMILIES[name]
    module, batch, calls = traced(family)
    block = family.blocks[1]
    facets = ("input", "q", "k", "v", "attn", "mlp")
    names = [f"{block}/{facet}" for facet in facets]
    found = collect(module, batch, taps(module, [*names, block], calls), whole)
    own = {which: getattr(family, which) for which in ("q", "k", "v", "attn", "mlp")}
    modules = {which: f"{block}.{path.partition('[')[0]}" for which, path in own.items()}
    named = collect(module, batch, sorted(set(modules.values())), whole)
    for which, path in own.items():
        assert torch.equal(found[f"{block}/{which}"], part_of(named[modules[which]], path)), which

    x, attn, mlp = (found[f"{block}/{which}"] for which in ("input", "attn", "mlp"))
    part = module.get_submodule(block)
    with torch.no_grad():
        if family.residual == "pre":
            truth = x + attn + mlp
        elif family.residual == "scaled":
            truth = x + part.layer_scale1(attn) + part.layer_scale2(mlp)
        else:
            first, second = (
                (part.attention.output.LayerNorm, part.output.LayerNorm)
                if name == "BERT"
                else (part.layer_norm, part.final_layer_norm)
            )
            truth = second(first(x + attn) + mlp)
        torch.testing.assert_close(found[block], truth, rtol=0, atol=2e-6)
        before = part.get_submodule(family.before)(x) if family.before else x
        for which in "qkv":
            projection = part.get_submodule(own[which].partition("[")[0])
            truth = part_of(projection(before), own[which])
            torch.testing.assert_close(found[f"{block}/{which}"], truth, rtol=0, atol=2e-6)
    assert min(float(tensor.std()) for tensor in found.values()) > 1e-3


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_attention_maps_weigh_the_values(name):
    family = FAMILIES[name]
    module, batch, calls = traced(family)
    before = digest_of(module)
    block = family.blocks[1]
    names = choose(calls, "blocks/map", [], module=module)
    assert names == [f"{b}/map" for b in family.blocks]
    wanted = [*names, *(f"{block}/{which}" for which in ("q", "k", "v", "attn"))]
    found = collect(module, batch, taps(module, wanted, calls), whole)
    assert digest_of(module) == before
    plain = collect(module, batch, taps(module, [f"{block}/attn"], calls), whole)
    torch.testing.assert_close(found[f"{block}/attn"], plain[f"{block}/attn"], rtol=0, atol=2e-6)

    weights = found[f"{block}/map"]
    q, k, v = (found[f"{block}/{which}"].unflatten(-1, (-1, q_width(found, block))) for which in "qkv")
    n, tokens = q.shape[:2]
    assert weights.shape == (n, 2, tokens, tokens)
    assert k.shape[2] == v.shape[2] == family.key_heads
    torch.testing.assert_close(weights.sum(-1), torch.ones(n, 2, tokens), rtol=0, atol=1e-5)
    k, v = (x.repeat_interleave(2 // family.key_heads, 2) for x in (k, v))
    if not family.rotary:
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5
        if "input_ids" in batch and "SigLIP" not in name and name != "BERT":
            scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -torch.inf)
        torch.testing.assert_close(weights, scores.softmax(-1), rtol=0, atol=2e-6)
    mixed = torch.einsum("nhqk,nkhd->nqhd", weights, v).flatten(2)
    with torch.no_grad():
        truth = module.get_submodule(block).get_submodule(family.out)(mixed)
    torch.testing.assert_close(found[f"{block}/attn"], truth, rtol=0, atol=2e-6)

    module.set_attn_implementation("eager")
    with torch.no_grad():
        said = module(**batch, output_attentions=True).attentions
    for layer, truth in zip(names, said, strict=True):
        torch.testing.assert_close(found[layer], truth, rtol=0, atol=1e-6)
    assert (weights - found[names[0]]).abs().max() > 1e-4


def q_width(found, block):
    """Features of one head; there are two."""
    return found[f"{block}/q"].shape[-1] // 2


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ["layer1", "layer2.0", "layer3", "layer4", "avgpool"]),
        ("densenet121", ["features.denseblock1", "features.transition2", "features.denseblock4", "classifier"]),
        ("efficientnet_b0", ["features.1", "features.4", "features.7", "classifier"]),
    ],
)
def test_layers_equal_those_of_torchvision(name, layers):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.manual_seed(0)
    module = models.get_model(name, weights=None).eval()
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        truth = create_feature_extractor(module, layers)(x)
    found = collect(module, {"x": x}, layers, whole)
    for layer in layers:
        torch.testing.assert_close(found[layer], truth[layer], rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------ in place


class Residual(nn.Module):
    """ResNet's block: rectifiers in place, and a residual that is added in place."""

    def __init__(self, width, inplace):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.inplace = inplace

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.inplace:
            out += x
        else:
            out = out + x
        return self.relu(out)


class Dense(nn.Module):
    """DenseNet's layer: a norm and a rectifier in place on what earlier layers said, then more channels."""

    def __init__(self, width, inplace):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x):
        return torch.cat([x, self.conv(self.relu(self.norm(x)))], 1)


class Transition(nn.Sequential):
    """DenseNet's end: the features themselves are rectified in place after they were returned."""

    def __init__(self, width, inplace):
        super().__init__()
        self.features = nn.Conv2d(width, width, 1)
        self.inplace = inplace

    def forward(self, x):
        return F.relu(self.features(x), inplace=self.inplace)


class Inverted(nn.Module):
    """EfficientNet's block: SiLU in place, gates in place, and a residual that is added in place."""

    def __init__(self, width, inplace):
        super().__init__()
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.act = nn.SiLU(inplace=inplace)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Conv2d(2 * width, 2 * width, 1)
        self.project = nn.Conv2d(2 * width, width, 1)
        self.inplace = inplace

    def forward(self, x):
        y = self.act(self.depthwise(self.act(self.expand(x))))
        gate = self.gate(self.squeeze(y)).sigmoid()
        y = y.mul_(gate) if self.inplace else y * gate
        y = self.project(y)
        return y.add_(x) if self.inplace else y + x


def network(kind, inplace):
    torch.manual_seed(3)
    width = 6
    if kind == "DenseNet":
        rows = [Dense(width + 4 * i, inplace) for i in range(3)] + [Transition(width + 12, inplace)]
    else:
        block = Residual if kind == "ResNet" else Inverted
        rows = [block(width, inplace) for _ in range(3)]
    module = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(inplace=inplace), *rows).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):  # a norm that does something
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module


def by_reference(module, x):
    """What a hook that keeps the tensor itself ends up with, copied after the pass."""
    kept, handles = {}, []
    for name, part in module.named_modules():

        def hook(part, inputs, output, name=name):
            key = name or "output"
            kept[key if key not in kept else f"{key}@2"] = output

        handles.append(part.register_forward_hook(hook))
    with torch.inference_mode():
        module(x)
    for handle in handles:
        handle.remove()
    return {name: tensor.clone() for name, tensor in kept.items()}


@pytest.mark.parametrize("kind", ["ResNet", "DenseNet", "EfficientNet"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_in_place_networks_equal_the_same_network_that_overwrites_nothing(kind, layout):
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    module = network(kind, inplace=True).to(memory_format=layout)
    truth = by_reference(network(kind, inplace=False), x)
    calls = trace(module, {"x": x[:2]})
    layers = choose(calls, "all", [])
    found = collect(module, {"x": x}, taps(module, layers, calls), whole)
    assert set(found) == set(truth) and len(found) > 12
    for layer in layers:
        torch.testing.assert_close(found[layer], truth[layer], rtol=0, atol=2e-6)
    spoilt = by_reference(module, x)
    wrong = [layer for layer in layers if not torch.allclose(spoilt[layer], truth[layer], atol=1e-4)]
    assert len(wrong) >= 4  # the trap is set

    inputs = [f"{layer}/input" for layer in ("1", "2", "3")]
    before = collect(module, {"x": x}, taps(module, inputs, calls), whole)
    for layer, of in zip(inputs, ("0", "1", "2"), strict=True):
        torch.testing.assert_close(before[layer], truth[of], rtol=0, atol=2e-6)


def test_reductions_that_return_views_are_copied_in_time():
    module = network("ResNet", inplace=True)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    truth = by_reference(network("ResNet", inplace=False), x)
    for reduce in (lambda y: y[:, 0], lambda y: y.flatten(1), lambda y: y.detach().permute(0, 2, 3, 1)):
        found = collect(module, {"x": x}, ["0", "2.bn1", "2.bn2"], reduce)
        for layer, tensor in found.items():
            torch.testing.assert_close(tensor, reduce(truth[layer]), rtol=0, atol=2e-6)


# ------------------------------------------------------------------------------------------------ attention of torch


class Fused(nn.Module):
    """Attention as timm writes it."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads = heads
        self.fused_attn = True
        self.qkv = nn.Linear(width, 3 * width)
        self.attn_drop = nn.Dropout(0.3)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused_attn:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = self.attn_drop((q * (width // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1)) @ v
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, width))


class TimmBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(16)
        self.attn = Fused()
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(x)


def test_fused_projections_of_timm():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 16), nn.Sequential(TimmBlock(), TimmBlock())).eval()
    batch = {"x": torch.randn(3, 5, 16)}
    calls = trace(module, batch)
    assert blocks(module, calls) == ["1.0", "1.1"]
    names = [f"1.1/{which}" for which in ("input", "q", "k", "v", "attn", "mlp", "map")]
    found = collect(module, batch, taps(module, [*names, "1.0", "1.1"], calls), whole)
    assert all(part.fused_attn for part in module.modules() if isinstance(part, Fused))
    x, q, k, v, attn, mlp, weights = (found[name] for name in names)
    assert torch.equal(x, found["1.0"])
    torch.testing.assert_close(found["1.1"], x + attn + mlp, rtol=0, atol=1e-6)
    with torch.no_grad():
        truth = torch.cat([q, k, v], -1)
        torch.testing.assert_close(truth, module[1][1].attn.qkv(module[1][1].norm1(x)), rtol=0, atol=1e-6)
    by_head = [y.unflatten(-1, (2, 8)).transpose(1, 2) for y in (q, k, v)]
    torch.testing.assert_close(weights, (by_head[0] @ by_head[1].mT / 8**0.5).softmax(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_has_no_modules_for_its_projections(batch_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=batch_first, dropout=0.2)
    nn.init.normal_(layer.self_attn.in_proj_bias)
    module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(3, 5, 16)
    batch = {"src": x if batch_first else x.transpose(0, 1)}
    names = [f"layers.1/{which}" for which in ("q", "k", "v", "attn", "mlp", "map")]
    found = collect(module, batch, taps(module, names), whole)
    q, k, v, attn, mlp, weights = (found[name] for name in names)
    part = module.layers[1]
    with torch.no_grad():
        y = module.layers[0](batch["src"])
        truth = F.linear(y, part.self_attn.in_proj_weight, part.self_attn.in_proj_bias)
        out, maps = part.self_attn(y, y, y, average_attn_weights=False)
        if not batch_first:
            truth, out = truth.transpose(0, 1), out.transpose(0, 1)
            mlp = mlp.transpose(0, 1)
    torch.testing.assert_close(torch.cat([q, k, v], -1), truth, rtol=0, atol=2e-6)
    torch.testing.assert_close(attn, out, rtol=0, atol=2e-6)
    torch.testing.assert_close(weights, maps, rtol=0, atol=2e-6)
    assert weights.shape == (3, 2, 5, 5)
    causal = torch.ones(5, 5).triu(1).bool()
    masked = collect(module, {**batch, "mask": causal}, taps(module, ["layers.0/map"]), whole)["layers.0/map"]
    assert torch.equal(masked.triu(1), torch.zeros(3, 2, 5, 5)) and masked.diagonal(0, 2, 3).min() > 0


# ------------------------------------------------------------------------------------------------ one pass


class Steps(nn.Module):
    """Counts how far a pass came."""

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
        self.again = nn.ReLU(inplace=True)
        self.done = 0

    def forward(self, x):
        for step in self.steps:
            x = self.again(step(x))
            self.done += 1
        return x


def test_the_pass_ends_with_the_last_layer_and_tells_the_sink_in_order():
    torch.manual_seed(0)
    module = Steps().eval()
    x = torch.randn(3, 4)
    told = []
    layers = ["again@2", "steps.0", "steps.2/input"]
    found = collect(
        module,
        {"x": x},
        taps(module, layers),
        whole,
        dtype=torch.float16,
        sink=lambda layer, tensor: told.append((layer, tensor.clone())),
    )
    assert found == {} and module.done == 2
    assert [layer for layer, _ in told] == ["steps.0", "again@2", "steps.2/input"]
    with torch.no_grad():
        first = module.steps[0](x)
        second = module.steps[1](first.clamp_min(0)).clamp_min(0)
    for (_, tensor), truth in zip(told, (first, second, second), strict=True):
        assert tensor.dtype == torch.float16
        torch.testing.assert_close(tensor, truth.half(), rtol=0, atol=0)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_hooks_that_stay_for_many_batches():
    torch.manual_seed(0)
    module = Steps().eval()
    batches = [torch.randn(n, 4) for n in (3, 3, 1)]
    with listening(
        module, taps(module, ["steps.1", "again@3"]), {"steps.1": whole, "again@3": lambda y: y.sum(1)}
    ) as go:
        together = [go({"x": x}) for x in batches]
    for x, found in zip(batches, together, strict=True):
        alone = collect(module, {"x": x}, ["steps.1", "again@3"], whole)
        assert torch.equal(found["steps.1"], alone["steps.1"])
        torch.testing.assert_close(found["again@3"], alone["again@3"].sum(1))
    assert not any(part._forward_hooks for part in module.modules())


def test_axes_are_put_in_order_before_they_are_reduced():
    module = nn.Sequential(nn.Conv1d(2, 6, 3), nn.GELU()).eval()
    x = torch.randn(3, 2, 10)
    calls = trace(module, {"x": x})
    found = collect(module, {"x": x}, taps(module, ["0", "1"], calls), lambda y: y.mean(1))
    with torch.no_grad():
        truth = module[0](x)
    torch.testing.assert_close(found["0"], truth.mean(2))
    assert found["1"].shape == (3, 6)
    assert [call.canonical_shape for call in calls] == [(8, 6), (8, 6), (8, 6)]
    assert shapes(module, {"x": x}, taps(module, ["0"], calls)) == {"0": (8, 6)}


def test_what_goes_wrong_is_said_and_leaves_no_hooks():
    module = Steps().eval()
    batch = {"x": torch.randn(2, 4)}

    def refuse(tensor):
        raise ValueError("no places")

    with pytest.raises(ValueError, match=r"layer 'steps.1': no places"):
        collect(module, batch, taps(module, ["steps.1"]), refuse)
    with pytest.raises(RuntimeError, match=r"\['again@6'\] were not computed"):
        collect(module, batch, ["again@6", "steps.0"], whole)
    with pytest.raises(RuntimeError, match=r"\['absent'\] were not computed"):
        collect(module, batch, ["absent"], whole)
    with pytest.raises(ValueError, match=r"layer 'steps.0': layout 'nct' does not fit an output with 2 axes"):
        collect(module, batch, {"steps.0": Tap("steps.0", "steps.0", layout="nct")}, whole)
    with pytest.raises(ValueError, match=r"'steps.0' gave no attention weights .* take 'q' and 'k'"):
        collect(module, batch, {"a/map": Tap("a/map", "steps.0", take="map")}, whole)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    found = collect(module, batch, ["steps.4"], whole)
    assert found["steps.4"].shape == (2, 4)


def test_attention_stays_as_it_was_when_a_pass_fails():
    family = FAMILIES["ViT"]
    module, batch, calls = traced(family)

    def refuse(tensor):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        collect(module, batch, taps(module, ["layers.0/map"], calls), refuse)
    assert module.config._attn_implementation == "sdpa"


# ------------------------------------------------------------------------------------------------ axes


@pytest.mark.parametrize(
    ("layout", "shape", "wanted"),
    [
        ("nct", (2, 3, 5), (2, 5, 3)),
        ("ntf", (2, 3, 5), (2, 3, 5)),
        ("tnf", (3, 2, 5), (2, 3, 5)),
        ("nhwc", (2, 3, 4, 5), (2, 5, 3, 4)),
        ("nchw", (2, 3, 4, 5), (2, 3, 4, 5)),
        ("nthwc", (2, 3, 4, 5, 6), (2, 6, 3, 4, 5)),
        ("ncthw", (2, 3, 4, 5, 6), (2, 3, 4, 5, 6)),
        ("nf", (2, 3), (2, 3)),
        ("", (2, 3, 4), (2, 3, 4)),
    ],
)
def test_order_of_axes(layout, shape, wanted):
    tensor = torch.arange(torch.tensor(shape).prod()).reshape(shape)
    found = canonical(tensor, layout, n=2)
    assert found.shape == wanted and found.data_ptr() == tensor.data_ptr()
    if layout:  # each axis by its letter, one value at a time
        letters = layout.replace("f", "c")
        order = {2: "nc", 3: "ntc", 4: "nchw", 5: "ncthw"}[len(shape)]
        for place in torch.ones(wanted).nonzero()[::7].tolist():
            at = dict(zip(order, place, strict=True))
            assert found[tuple(place)] == tensor[tuple(at[letter] for letter in letters)]


def test_bad_axes():
    tensor = torch.zeros(2, 3, 4)
    for layout in ("nchw", "nxt", "nn", "nctt", "ct"):
        with pytest.raises(ValueError, match=f"layout '{layout}' does not fit an output with 3 axes"):
            canonical(tensor, layout)
    with pytest.raises(ValueError, match=r"gives shape \(2, 3, 4\) for 3 stimuli; its first axis is not the stimuli"):
        canonical(tensor, "ntf", n=3)


def test_a_copy_of_a_traced_module_reads_the_same():
    family = FAMILIES["wav2vec 2.0"]
    module, batch, calls = traced(family)
    names = choose(calls, "all", [], module=module)
    assert not any("parametrizations" in name for name in names)
    found = collect(module, batch, taps(module, names, calls), whole)
    again = collect(copy.deepcopy(module), batch, taps(module, names, calls), whole)
    assert all(torch.equal(found[name], again[name]) for name in names)
