"""Every type of model of transformers from a folder: weights, preprocessing and what its card says."""

import json

import numpy as np
import pytest
import torch

from neuralign.datasets import StimulusSet
from neuralign.encoders import extract, load_model
from neuralign.tables import layer_table

transformers = pytest.importorskip("transformers")

WIDTH = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
PATCHES = WIDTH | {"image_size": 16, "patch_size": 4}
WORDS = ["the", "a", "cat", "dog", "mat", "sat", "ran", "sees", "on", "over", "today"]
TEXT = {"vocab_size": len(WORDS) + 4, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
SOUND = WIDTH | {"conv_dim": (24, 24), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_conv_pos_embeddings": 8}
SOUND |= {"num_conv_pos_embedding_groups": 2, "vocab_size": 20}
VIDEO = {"crop_size": 16, "patch_size": 4, "frames_per_clip": 4, "tubelet_size": 2, "num_attention_heads": 2}
VIDEO |= {"hidden_size": 24, "num_hidden_layers": 3, "pred_hidden_size": 24, "pred_num_attention_heads": 2}
WHISPER = {"d_model": 16, "encoder_layers": 3, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 60}
WHISPER |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_mel_bins": 8}
WHISPER |= {"max_source_positions": 50, "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1}
WHISPER |= {"eos_token_id": 2, "decoder_start_token_id": 3}


def blocks(pattern, n=3):
    return [pattern.format(i) for i in range(n)]


STAGES = [f"encoder.stages.{s}.layers.{i}" for s, depth in enumerate((1, 2, 1, 1)) for i in range(depth)]
TOWERS = {
    "text_config": WIDTH | TEXT | {"projection_dim": 8},
    "vision_config": PATCHES | {"projection_dim": 8},
    "projection_dim": 8,
}
# Class, configuration, what it reads, its blocks, and how many of them equal hidden states 1, 2, ...
TABLE = {
    "gpt2": (
        "GPT2Model",
        {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32} | TEXT,
        "text",
        blocks("h.{}"),
        2,
    ),
    "llama": ("LlamaModel", WIDTH | TEXT | {"num_key_value_heads": 1}, "text", blocks("layers.{}"), 2),
    "bert": ("BertModel", WIDTH | TEXT, "text", blocks("encoder.layer.{}"), 3),
    "vit": ("ViTModel", PATCHES, "image", blocks("layers.{}"), 3),
    "dinov2": ("Dinov2Model", PATCHES | {"layerscale_value": 0.3}, "image", blocks("encoder.layer.{}"), 3),
    "resnet": (
        "ResNetModel",
        {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 1, 1]},
        "image",
        STAGES,
        0,
    ),
    "convnext": ("ConvNextModel", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}, "image", STAGES, 0),
    "clip_vision_model": ("CLIPVisionModel", PATCHES, "image", blocks("encoder.layers.{}"), 3),
    "clip": ("CLIPModel", TOWERS, "image and text", blocks("vision_model.encoder.layers.{}"), 3),
    "siglip": ("SiglipModel", TOWERS, "image and text", blocks("vision_model.encoder.layers.{}"), 3),
    "wav2vec2": ("Wav2Vec2Model", SOUND, "sound", blocks("encoder.layers.{}"), 3),
    "hubert": ("HubertModel", SOUND, "sound", blocks("encoder.layers.{}"), 3),
    "whisper": ("WhisperModel", WHISPER, "sound", blocks("layers.{}"), 2),
    "videomae": ("VideoMAEModel", PATCHES | {"num_frames": 4}, "clip", blocks("encoder.layer.{}"), 3),
    "vjepa2": ("VJEPA2Model", VIDEO | {"pred_num_hidden_layers": 1}, "clip", blocks("encoder.layer.{}"), 3),
}
# The layer that normalises the last block: its output is the last of the hidden states.
FINAL = {"gpt2": "ln_f", "llama": "norm", "whisper": "layer_norm"}
PIXELS = {
    "image_processor_type": "ViTImageProcessor",
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.2, 0.2],
}


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["[UNK]", "<s>", "</s>", "<pad>"]
    words = {word: i for i, word in enumerate([*special, *WORDS])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=32, **names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}

    def build(kind):
        if kind not in made:
            path = made[kind] = tmp_path_factory.mktemp(kind)
            name, settings, reads, _, _ = TABLE[kind]
            cls = getattr(transformers, name)
            torch.manual_seed(0)
            cls(cls.config_class(**settings)).save_pretrained(path)
            if "text" in reads:
                tokenizer().save_pretrained(path)
            if "image" in reads:
                side = 32 if kind == "convnext" else 16  # its stages divide it by 32
                settings = PIXELS | {"size": {"height": side, "width": side}}
                (path / "preprocessor_config.json").write_text(json.dumps(settings))
            if reads == "clip":
                (path / "preprocessor_config.json").write_text(
                    json.dumps({"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}})
                )
            if reads == "sound":
                whisper = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
                reader = whisper if kind == "whisper" else transformers.Wav2Vec2FeatureExtractor()
                reader.save_pretrained(path)
        return str(made[kind])

    return build


def stimuli(reads, n=3):
    draw = np.random.default_rng(0)
    if reads.startswith("image"):
        return StimulusSet.from_images(draw.integers(0, 256, (n, 36, 40, 3), np.uint8))
    if reads == "text":
        return StimulusSet.from_sentences([" ".join(draw.choice(WORDS, 6)) for _ in range(n)])
    if reads == "clip":
        return StimulusSet.from_clips(draw.integers(0, 256, (n, 6, 20, 24, 3), np.uint8), fps=8)
    return StimulusSet.from_sounds(list(draw.normal(0, 0.1, (n, 8000))), 16000)


def hidden_states(kind, path, batch):
    """Hidden states of the model that transformers itself loads."""
    whole = getattr(transformers, TABLE[kind][0]).from_pretrained(path).eval()
    if kind == "whisper":
        whole = whole.encoder
    if kind in ("clip", "siglip"):
        whole = whole.vision_model
    options = {"skip_predictor": True} if kind == "vjepa2" else {}
    with torch.no_grad():
        return whole(**batch, **options, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("kind", TABLE)
def test_blocks_equal_hidden_states(folder, kind):
    path, (_, _, reads, names, equal) = folder(kind), TABLE[kind]
    shown = stimuli(reads)
    model = load_model(path)
    inputs = model.inputs.reading(shown) if hasattr(model.inputs, "reading") else model.inputs
    [(rows, batch)] = list(inputs.batches(shown, 3))
    batch = {name: x for name, x in batch.items() if name not in ("index", "frames")}
    hidden = [state[np.argsort(rows)] for state in hidden_states(kind, path, batch)]
    ends = [name for name in names if kind not in ("resnet", "convnext")]
    final = [FINAL[kind]] if kind in FINAL else []
    features = extract(model, shown, [*names, *final], cache=False, batch_size=2)
    assert features.layers == [*names, *final]

    def expected(state):
        if state.ndim == 4:
            return state.flatten(2).transpose(1, 2)
        if kind == "whisper":
            state = state[:, : int(np.ceil(8000 / 320))]  # of the 50 frames, those of the sound
        return state.mean(1) if model.pool == "mean" else state

    for i, name in enumerate(ends[:equal]):
        np.testing.assert_allclose(features[name], expected(hidden[i + 1]), atol=2e-5, err_msg=name)
    for name in final:
        np.testing.assert_allclose(features[name], expected(hidden[-1]), atol=2e-5)
        assert np.abs(features[names[-1]] - features[name]).max() > 1e-3  # the last block is not normalised
    if kind in ("resnet", "convnext"):  # the last block of every stage
        last = [name for name, after in zip(names, [*names[1:], ""], strict=True) if name[:16] != after[:16]]
        for name, state in zip(last, hidden[1:], strict=True):
            np.testing.assert_allclose(features[name], expected(state), atol=2e-5, err_msg=name)


@pytest.mark.parametrize("kind", TABLE)
def test_untrained_copies_are_drawn_by_the_model_itself(folder, kind):
    path = folder(kind)
    trained = load_model(path)
    one, same, other = (load_model(f"{path}-untrained", seed=seed).module.state_dict() for seed in (5, 5, 6))
    again = load_model(trained, untrained=True, seed=5).module.state_dict()
    plain = trained.module.state_dict()
    assert list(again) == list(plain) == [name for name in one if name in plain or not name.startswith("surprisal")]
    drawn = [name for name, p in plain.items() if p.is_floating_point() and p.numel() >= 200 and p.std() > 0]
    if kind == "whisper":
        drawn.remove("embed_positions.weight")  # sines: the same in every copy
    assert len(drawn) > 5
    for name in plain:
        assert torch.equal(one[name], same[name])
    for name in drawn:
        for copy in (one, again):
            if copy[name].std() == 0:  # what every model of the family begins with
                continue
            assert not torch.equal(copy[name], plain[name]), name
            # Of the same distribution as what the family draws, not as what torch would.
            assert float(copy[name].std()) == pytest.approx(float(plain[name].std()), rel=0.5, abs=2e-3), name
        if one[name].std() > 0:
            assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize("kind", TABLE)
def test_cards_and_tables_of_layers(folder, kind):
    path, (_, _, reads, names, _) = folder(kind), TABLE[kind]
    model = load_model(path)
    card = model.card
    assert card.title and card.citation and card.modality == reads and card.preprocessing and model.norm
    if reads == "image":
        assert card.size == ("32 x 32" if kind == "convnext" else "16 x 16") and "0.5/0.4/0.3" in card.preprocessing
    if reads == "text":
        assert card.size == "up to 32 tokens"
    table = layer_table(model)
    assert table["layer"][table["default"] == "*"].tolist() == names
    depth = table.set_index("layer")["depth"]
    assert [depth[name] for name in names] == [round((i + 1) / len(names), 3) for i in range(len(names))]
    assert depth.iloc[0] == 0 and (table["shape"] != "").all()
    if kind not in ("resnet", "convnext"):
        facets = table.set_index("layer")["facets"]
        assert {"q", "k", "v", "attn", "mlp", "map"} <= set(facets[names[0]].split())


def test_registers_are_counted(folder):
    expected = {"vit": 1, "dinov2": 1, "clip_vision_model": 1, "resnet": 0, "clip": 1, "siglip": 0, "videomae": 0}
    for kind, n in expected.items():
        assert load_model(folder(kind)).special_tokens == n, kind


def test_sides_of_models_of_images_and_text(folder):
    shown, said = stimuli("image"), stimuli("text")
    for kind in ("clip", "siglip"):
        path = folder(kind)
        both = load_model(path)
        vision, text = load_model(f"{path}#vision"), load_model(f"{path}#text")
        assert not any(name.startswith("text_model") for name, _ in vision.module.named_parameters())
        assert not any(name.startswith("vision_model") for name, _ in text.module.named_parameters())
        assert text.name.endswith("#text")
        for side, items, block in (
            (vision, shown, "vision_model.encoder.layers.1"),
            (text, said, "text_model.encoder.layers.1"),
        ):
            one, other = (extract(m, items, block, "mean", cache=False)[block] for m in (both, side))
            np.testing.assert_array_equal(one, other)
        with pytest.raises(ValueError, match="kind 'sentence'"):
            extract(vision, said, cache=False)
    with pytest.raises(ValueError, match="side='test' is unknown; did you mean 'text'"):
        load_model(f"{path}#test")
    with pytest.raises(ValueError, match="it has no two sides, it reads image; leave #text out"):
        load_model(folder("vit") + "#text")


@pytest.mark.filterwarnings("ignore:layer 'surprisal'")
def test_surprisal_needs_a_head_with_weights(tmp_path):
    """A tied head comes with the embeddings; an untied one that the checkpoint lacks would be random."""
    settings = WIDTH | TEXT | {"num_key_value_heads": 1}
    words = StimulusSet.from_words(WORDS[:6], np.arange(6) / 3)
    for tied in (True, False):
        torch.manual_seed(0)
        whole = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings, tie_word_embeddings=tied)).eval()
        for part, saved in (("whole", whole), ("base", whole.model)):
            path = tmp_path / f"{part}-{tied}"
            saved.save_pretrained(path)
            tokenizer().save_pretrained(path)
        ids = torch.tensor([tokenizer()(" ".join(WORDS[:6]))["input_ids"]])
        with torch.no_grad():
            logs = whole(ids).logits[0].log_softmax(-1)
        bits = -logs[torch.arange(5), ids[0, 1:]] / np.log(2)
        assert load_model(str(tmp_path / f"whole-{tied}")).inputs.causal
        found = extract(str(tmp_path / f"whole-{tied}"), words, "surprisal", cache=False)["surprisal"]
        np.testing.assert_allclose(found[1:, 0], bits, atol=1e-4)
    drawn = load_model(load_model(str(tmp_path / "whole-False")), untrained=True).module
    weight = drawn.get_submodule("surprisal.head").weight  # by the rule of the family, as are the embeddings
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert hasattr(load_model(str(tmp_path / "base-True")).module, "surprisal")
    assert not hasattr(load_model(str(tmp_path / "base-False")).module, "surprisal")


def test_parameters_that_a_checkpoint_lacks_are_named(folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    path = shutil.copytree(folder("vit"), tmp_path / "vit")
    state = load_file(path / "model.safetensors")
    kept = {name: p for name, p in state.items() if not name.startswith("pooler")}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"vit: 2 parameters are not in its checkpoint and are random \(first: pooler"):
        one = load_model(str(path), seed=1).module
    with pytest.warns(UserWarning):
        same = load_model(str(path), seed=1).module
    assert torch.equal(one.pooler.dense.weight, same.pooler.dense.weight)
    dense = next(name for name in state if "layer.0.intermediate.dense.weight" in name)
    assert torch.equal(one.layers[0].mlp.fc1.weight, state[dense])


def test_licence_of_a_local_model_card(folder, tmp_path):
    import shutil

    path = shutil.copytree(folder("vit"), tmp_path / "vit")
    assert load_model(str(path)).card.licence == "see the source"
    (path / "README.md").write_text("---\ntags:\n- vision\nlicense: cc-by-4.0\n---\nlicense: other\n")
    assert load_model(str(path)).card.licence == "cc-by-4.0"


def test_positions_that_are_counted_from_behind_the_padding(tmp_path):
    """RoBERTa has 34 rows of positions and reads 32 tokens: a longer sentence is named, one of 32 is read."""
    config = transformers.RobertaConfig(**WIDTH | TEXT | {"max_position_embeddings": 34, "pad_token_id": 1})
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    reader = tokenizer()
    reader.model_max_length = int(1e30)
    reader.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert model.inputs.longest == 32 and not model.inputs.causal
    extract(model, StimulusSet.from_sentences([" ".join(["cat"] * 32)]), cache=False)
    with pytest.raises(ValueError, match="more tokens than the 32"):
        extract(model, StimulusSet.from_sentences([" ".join(["cat"] * 33)]), cache=False)


def test_the_encoder_of_an_encoder_and_decoder_is_what_reads(tmp_path):
    config = transformers.T5Config(
        vocab_size=20, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    whole = transformers.T5Model(config).eval()
    whole.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    said = stimuli("text", 2)
    found = extract(model, said, "output", cache=False)["output"]
    for row, text in enumerate(said.texts()):
        ids = torch.tensor([tokenizer()(text)["input_ids"]])
        with torch.no_grad():
            np.testing.assert_allclose(found[row], whole.encoder(ids).last_hidden_state[0].mean(0), atol=1e-5)
    assert not model.inputs.causal
