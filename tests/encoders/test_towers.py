import json

import numpy as np
import pytest
import torch
from PIL import Image

from neuralign.datasets import StimulusSet
from neuralign.encoders import extract
from neuralign.encoders.features.adapters.towers import TOWERS, Towers, tower_model
from neuralign.encoders.features.adapters.video import on_frames
from neuralign.encoders.features.vision import ImageInputs

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SENTENCES = ["a cat sleeps", "the dog runs far away", "a bird"]


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted(set(" ".join(SENTENCES).split()))
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *words, "<s>", "</s>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(name, vocabulary[name]) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module")
def modules(tokenizer):
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    torch.manual_seed(0)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    text = {**WIDTH, **special, "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    vision = {**WIDTH, "image_size": 32, "patch_size": 8}
    return {
        "clip": CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval(),
        "siglip": SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval(),
    }


class Pixels(ImageInputs):
    """As an image processor of transformers names what it makes."""

    def finish(self, *args, **kwargs):
        return {"pixel_values": super().finish(*args, **kwargs)["x"]}


@pytest.fixture
def images():
    return StimulusSet.from_images(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))


@pytest.fixture
def sentences():
    return StimulusSet.from_sentences(SENTENCES)


@pytest.fixture(params=["clip", "siglip"])
def kind(request):
    return request.param


@pytest.fixture
def model(kind, modules, tokenizer):
    return tower_model(kind, modules[kind], Pixels((32, 32)), tokenizer)


def embedding(found):
    return (found if isinstance(found, torch.Tensor) else found.pooler_output).numpy()


def test_images_go_through_their_tower(model, kind, modules, images):
    pixels = torch.from_numpy(images.images() / 255).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        joint = embedding(modules[kind].get_image_features(pixel_values=pixels))
        hidden = modules[kind].vision_model(pixel_values=pixels, output_hidden_states=True)
    features = extract(model, images, layers="all", cache=False)
    np.testing.assert_allclose(features["output"], joint, atol=1e-5)
    np.testing.assert_allclose(features["vision_model.encoder.layers.0"], hidden.hidden_states[1], atol=1e-5)
    last = "vision_model.encoder.layers.1" if kind == "clip" else "vision_model.post_layernorm"
    np.testing.assert_allclose(features[last], hidden.last_hidden_state, atol=1e-5)
    assert not any(layer.startswith("text_model") for layer in features.layers)
    blocks = extract(model, images, cache=False).layers
    assert blocks == ["vision_model.encoder.layers.0", "vision_model.encoder.layers.1"]


def test_sentences_go_through_theirs(model, kind, modules, tokenizer, sentences):
    features = extract(model, sentences, layers="output", cache=False, batch_size=2)
    means = extract(model, sentences, layers="blocks", reduce="mean", cache=False)
    assert means.layers == ["text_model.encoder.layers.0", "text_model.encoder.layers.1"]
    for row, text in enumerate(SENTENCES):
        padded = {"padding": "max_length", "max_length": 12} if kind == "siglip" else {}
        ids = torch.tensor([tokenizer(text, **padded)["input_ids"]])
        with torch.no_grad():
            joint = embedding(modules[kind].get_text_features(input_ids=ids))
            hidden = modules[kind].text_model(input_ids=ids, output_hidden_states=True)
        np.testing.assert_allclose(features["output"][[row]], joint, atol=1e-5)
        np.testing.assert_allclose(means[means.layers[0]][[row]], hidden.hidden_states[1].mean(1), atol=1e-5)
    tokens = extract(model, sentences[[0]], layers="blocks", cache=False)
    assert tokens["text_model.encoder.layers.1"].shape == (1, 12 if kind == "siglip" else 5, 32)


def test_embeddings_agree_with_the_whole_model(model, kind, modules, tokenizer, images, sentences):
    """Cosines of our embeddings, scaled as the model scales them, are its own logits."""
    pixels = torch.from_numpy(images.images() / 255).float().permute(0, 3, 1, 2)
    pad = {"padding": "max_length", "max_length": 12} if kind == "siglip" else {"padding": True}
    read = tokenizer(SENTENCES, return_tensors="pt", return_token_type_ids=False, **pad)
    if kind == "siglip":
        read.pop("attention_mask")
    with torch.no_grad():
        logits = modules[kind](pixel_values=pixels, **read).logits_per_image.numpy()
    seen, said = (extract(model, one, layers="output", cache=False)["output"] for one in (images, sentences))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (seen, said)]
    scaled = unit[0] @ unit[1].T * np.exp(modules[kind].logit_scale.item())
    if kind == "siglip":
        scaled = scaled + modules[kind].logit_bias.item()
    np.testing.assert_allclose(scaled, logits, atol=1e-4)


@pytest.mark.parametrize("tower", list(TOWERS))
def test_one_tower_alone(kind, modules, tokenizer, images, sentences, tower):
    both = tower_model(kind, modules[kind], Pixels((32, 32)), tokenizer)
    one = tower_model(kind, modules[kind], Pixels((32, 32)), tokenizer, tower)
    own, other = (images, sentences) if tower == "vision" else (sentences, images)
    np.testing.assert_array_equal(
        extract(one, own, layers="output", cache=False)["output"],
        extract(both, own, layers="output", cache=False)["output"],
    )
    assert {name.partition(".")[0] for name, _ in one.module.named_parameters()} <= {
        f"{tower}_model",
        "visual_projection" if tower == "vision" else "text_projection",
    }
    with pytest.raises(ValueError, match=rf"kind '{other.kind}'.*reads {own.kind}s"):
        extract(one, other, cache=False)


def test_what_is_missing_is_named(kind, modules, tokenizer, images, sentences):
    blind = tower_model(kind, modules[kind], None, tokenizer)
    assert extract(blind, sentences, layers="output", cache=False).layers == ["output"]
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        extract(blind, images, cache=False)
    with pytest.raises(ValueError, match="tokenizer"):
        extract(tower_model(kind, modules[kind], Pixels((32, 32)), None), sentences, cache=False)
    with pytest.raises(ValueError, match="without its preprocessing"):
        tower_model(kind, modules[kind], None, tokenizer, "vision")
    with pytest.raises(ValueError, match="did you mean 'vision'"):
        tower_model(kind, modules[kind], None, tokenizer, "visual")


def test_sentences_that_cannot_be_read(model):
    with pytest.raises(ValueError, match="1 sentences are empty"):
        extract(model, StimulusSet.from_sentences(["a cat", " "]), layers="output", cache=False)
    with pytest.raises(ValueError, match=r"sentence-00002.*22 tokens"):
        extract(model, StimulusSet.from_sentences(["a cat", "a " * 20]), layers="output", cache=False)
    words = StimulusSet.from_words(["a", "cat"], [0, 1])
    with pytest.raises(ValueError, match="kind 'word'"):
        extract(model, words, cache=False)


def test_redrawn_towers_are_random_by_the_seed(kind, modules):
    towers = Towers(modules[kind], ("vision",))
    drawn = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn.append(towers.redrawn().state_dict())
    name = "vision_model.embeddings.patch_embedding.weight"
    assert drawn[0].keys() == towers.state_dict().keys()
    assert all(torch.equal(drawn[0][key], drawn[1][key]) for key in drawn[0])
    assert not torch.equal(drawn[0][name], drawn[2][name])
    assert not torch.equal(drawn[0][name], towers.state_dict()[name])


def test_both_readers_are_in_the_key(kind, modules, tokenizer):
    def spec(images, texts):
        return json.dumps(dict(tower_model(kind, modules[kind], images, texts).inputs.spec()), default=str)

    assert len({spec(Pixels((32, 32)), tokenizer), spec(Pixels((32, 32), shortest=40), tokenizer)}) == 2
    assert spec(None, tokenizer) != spec(Pixels((32, 32)), None)


def test_towers_see_clips_frame_by_frame(model):
    clips = np.random.default_rng(1).integers(0, 256, (2, 4, 32, 32, 3), dtype=np.uint8)
    seen = extract(on_frames(model, 4), StimulusSet.from_clips(clips), layers="output", cache=False)["output"]
    frames = StimulusSet.from_images([Image.fromarray(frame) for clip in clips for frame in clip])
    each = extract(model, frames, layers="output", cache=False)["output"]
    np.testing.assert_allclose(seen, each.reshape(2, 4, -1).mean(1), atol=1e-5)


def test_a_folder_becomes_a_model(kind, modules, tokenizer, images, sentences, tmp_path):
    modules[kind].save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    processor = {"image_processor_type": f"{'CLIP' if kind == 'clip' else 'Siglip'}ImageProcessor"}
    sizes = {"size": {"height": 32, "width": 32}, "crop_size": {"height": 32, "width": 32}}
    plain = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | sizes | plain))
    built = tower_model(kind, modules[kind], Pixels((32, 32)), tokenizer)
    for own, side in ((images, "vision"), (sentences, "text")):
        expected = extract(built, own, layers="output", cache=False)["output"]
        for name in (str(tmp_path), f"{tmp_path}#{side}"):
            found = extract(name, own, layers="output", cache=False)
            np.testing.assert_allclose(found["output"], expected, atol=1e-5)
        random = extract(f"{tmp_path}#{side}", own, layers="output", untrained=True, seed=7, cache=False)["output"]
        assert np.abs(random - expected).max() > 1e-3
