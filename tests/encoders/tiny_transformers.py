"""Every family of models of transformers that is read here, random and small, with what is known of its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Family:
    """What a family of models says about itself.

    `hidden` are the layers that equal ``hidden_states``, `last` the one that equals ``last_hidden_state``, `norm` the
    final norm. Facets are names below the block; ``c_attn[0]`` is the first third of the last axis. `out` maps the
    values of all heads to the output of attention, `before` is the norm before queries, keys and values, and
    `residual` says how attention and MLP are added: before or after a norm, or scaled. `rotary` queries and keys turn
    with position.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[int], dict[str, torch.Tensor]]
    blocks: tuple[str, ...]
    hidden: tuple[str, ...]
    last: str
    norm: str | None
    q: str = ""
    k: str = ""
    v: str = ""
    attn: str = ""
    mlp: str = ""
    map: str = ""
    out: str = ""
    before: str = ""
    residual: str = "pre"
    key_heads: int = 2
    rotary: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def _seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def seeded() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = build().eval()
            for parameter in module.parameters():  # a scale of 1 or a bias of 0 would hide a norm or a residual
                parameter.data += 0.05 * torch.randn_like(parameter)
        return module

    return seeded


def _normal(key: str, *shape: int) -> Callable[[int], dict[str, torch.Tensor]]:
    def batch(n: int) -> dict[str, torch.Tensor]:
        return {key: torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))}

    return batch


def _tokens(n: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, 50, (n, 7), generator=torch.Generator().manual_seed(1))}


IMAGES = _normal("pixel_values", 3, 32, 32)
SOUNDS = _normal("input_values", 2000)
WIDTH = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
PATCHES = {**WIDTH, "image_size": 32, "patch_size": 8}
SPEECH = {
    **WIDTH,
    "vocab_size": 20,
    "conv_dim": (24, 24, 24),
    "conv_stride": (5, 4, 2),
    "conv_kernel": (10, 8, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=3, n_head=2))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(LlamaConfig(**WIDTH, vocab_size=50, num_key_value_heads=1, max_position_embeddings=32))


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**WIDTH, vocab_size=50, max_position_embeddings=32))


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(**PATCHES))


def _dinov2() -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(**PATCHES, layerscale_value=0.3))


def _clip_vision() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**PATCHES))


def _clip_text() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**WIDTH, vocab_size=50, max_position_embeddings=32, eos_token_id=49))


def _siglip_vision() -> nn.Module:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(SiglipVisionConfig(**PATCHES))


def _siglip_text() -> nn.Module:
    from transformers import SiglipTextConfig, SiglipTextModel

    return SiglipTextModel(SiglipTextConfig(**WIDTH, vocab_size=50, max_position_embeddings=32))


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetModel

    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 2, 2, 1]))


def _convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextModel

    return ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 2, 1]))


def _wav2vec2(stable: bool = False) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        norm = "layer" if stable else "group"
        return Wav2Vec2Model(Wav2Vec2Config(**SPEECH, do_stable_layer_norm=stable, feat_extract_norm=norm))

    return build


def _hubert(stable: bool = False) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from transformers import HubertConfig, HubertModel

        norm = "layer" if stable else "group"
        return HubertModel(HubertConfig(**SPEECH, do_stable_layer_norm=stable, feat_extract_norm=norm))

    return build


def _whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    return WhisperModel(config).encoder


def _videomae() -> nn.Module:
    from transformers import VideoMAEConfig, VideoMAEModel

    return VideoMAEModel(VideoMAEConfig(**PATCHES, num_frames=4))


def _vjepa2() -> nn.Module:
    from transformers import VJEPA2Config, VJEPA2Model

    return VJEPA2Model(
        VJEPA2Config(
            crop_size=32,
            patch_size=8,
            frames_per_clip=4,
            hidden_size=48,
            num_attention_heads=2,
            num_hidden_layers=3,
            pred_hidden_size=48,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=1,
        )
    )


def _each(pattern: str, n: int = 3) -> tuple[str, ...]:
    return tuple(pattern.format(i) for i in range(n))


def _in_stages(depths: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"encoder.stages.{s}.layers.{i}" for s, depth in enumerate(depths) for i in range(depth))


def _speech(build: Callable[[], nn.Module], stable: bool) -> Family:
    blocks = _each("encoder.layers.{}")
    return Family(
        _seeded(build),
        SOUNDS,
        blocks,
        # Both are after the dropout of the encoder's input.
        ("encoder.dropout", *blocks),
        "encoder.layer_norm" if stable else blocks[-1],
        "encoder.layer_norm" if stable else None,
        **{which: f"attention.{which}_proj" for which in "qkv"},
        attn="attention",
        mlp="feed_forward",
        map="attention",
        out="attention.out_proj",
        before="layer_norm" if stable else "",
        residual="pre" if stable else "post",
    )


PROJECTED = {which: f"self_attn.{which}_proj" for which in "qkv"} | {"attn": "self_attn", "map": "self_attn"}
STAGES = ("embedder", *_each("encoder.stages.{}", 4))
FAMILIES = {
    "GPT-2": Family(
        _seeded(_gpt2),
        _tokens,
        _each("h.{}"),
        ("drop", "h.0", "h.1", "ln_f"),
        "ln_f",
        "ln_f",
        q="attn.c_attn[0]",
        k="attn.c_attn[1]",
        v="attn.c_attn[2]",
        attn="attn",
        mlp="mlp",
        map="attn",
        out="attn.c_proj",
        before="ln_1",
    ),
    "Llama": Family(
        _seeded(_llama),
        _tokens,
        _each("layers.{}"),
        ("embed_tokens", "layers.0", "layers.1", "norm"),
        "norm",
        "norm",
        **PROJECTED,
        mlp="mlp",
        out="self_attn.o_proj",
        before="input_layernorm",
        key_heads=1,
        rotary=True,
    ),
    "ViT": Family(
        _seeded(_vit),
        IMAGES,
        _each("layers.{}"),
        ("embeddings", *_each("layers.{}")),
        "layernorm",
        "layernorm",
        **{which: f"attention.{which}_proj" for which in "qkv"},
        attn="attention",
        mlp="mlp",
        map="attention",
        out="attention.o_proj",
        before="layernorm_before",
    ),
    "DINOv2": Family(
        _seeded(_dinov2),
        IMAGES,
        _each("encoder.layer.{}"),
        ("embeddings", *_each("encoder.layer.{}")),
        "layernorm",
        "layernorm",
        **{which: f"attention.{which}_proj" for which in "qkv"},
        attn="attention",
        mlp="mlp",
        map="attention",
        out="attention.o_proj",
        before="norm1",
        residual="scaled",
    ),
    "CLIP vision": Family(
        _seeded(_clip_vision),
        IMAGES,
        _each("encoder.layers.{}"),
        ("pre_layrnorm", *_each("encoder.layers.{}")),
        "encoder.layers.2",
        None,
        **PROJECTED,
        mlp="mlp",
        out="self_attn.out_proj",
        before="layer_norm1",
    ),
    "CLIP text": Family(
        _seeded(_clip_text),
        _tokens,
        _each("encoder.layers.{}"),
        ("embeddings", *_each("encoder.layers.{}")),
        "final_layer_norm",
        "final_layer_norm",
        **PROJECTED,
        mlp="mlp",
        out="self_attn.out_proj",
        before="layer_norm1",
    ),
    "SigLIP vision": Family(
        _seeded(_siglip_vision),
        IMAGES,
        _each("encoder.layers.{}"),
        ("embeddings", *_each("encoder.layers.{}")),
        "post_layernorm",
        "post_layernorm",
        **PROJECTED,
        mlp="mlp",
        out="self_attn.out_proj",
        before="layer_norm1",
    ),
    "SigLIP text": Family(
        _seeded(_siglip_text),
        _tokens,
        _each("encoder.layers.{}"),
        ("embeddings", *_each("encoder.layers.{}")),
        "final_layer_norm",
        "final_layer_norm",
        **PROJECTED,
        mlp="mlp",
        out="self_attn.out_proj",
        before="layer_norm1",
    ),
    "ResNet": Family(_seeded(_resnet), IMAGES, _in_stages((1, 2, 2, 1)), STAGES, "encoder", None),
    "ConvNeXt": Family(
        _seeded(_convnext), IMAGES, _in_stages((1, 2, 2, 1)), ("embeddings", *STAGES[1:]), "encoder", None
    ),
    "wav2vec 2.0": _speech(_wav2vec2(), stable=False),
    "wav2vec 2.0, stable norm": _speech(_wav2vec2(True), stable=True),
    "HuBERT": _speech(_hubert(), stable=False),
    "HuBERT, stable norm": _speech(_hubert(True), stable=True),
    "Whisper": Family(
        _seeded(_whisper),
        _normal("input_features", 8, 40),
        _each("layers.{}"),
        ("layers.0/input", "layers.0", "layers.1", "layer_norm"),
        "layer_norm",
        "layer_norm",
        **PROJECTED,
        mlp="fc2",
        out="self_attn.out_proj",
        before="self_attn_layer_norm",
    ),
    "VideoMAE": Family(
        _seeded(_videomae),
        _normal("pixel_values", 4, 3, 32, 32),
        _each("encoder.layer.{}"),
        ("embeddings", *_each("encoder.layer.{}")),
        "encoder.layer.2",
        None,
        q="attention.attention.query",
        k="attention.attention.key",
        v="attention.attention.value",
        attn="attention.output.dense",
        mlp="output.dense",
        map="attention.attention",
        out="attention.output.dense",
        before="layernorm_before",
    ),
    "V-JEPA 2": Family(
        _seeded(_vjepa2),
        _normal("pixel_values_videos", 4, 3, 32, 32),
        _each("encoder.layer.{}"),
        ("encoder.embeddings", *_each("encoder.layer.{}")),
        "encoder.layernorm",
        "encoder.layernorm",
        q="attention.query",
        k="attention.key",
        v="attention.value",
        attn="attention",
        mlp="mlp",
        map="attention",
        out="attention.proj",
        before="norm1",
        rotary=True,
        options={"skip_predictor": True},
    ),
    "BERT": Family(
        _seeded(_bert),
        _tokens,
        _each("encoder.layer.{}"),
        ("embeddings", *_each("encoder.layer.{}")),
        "encoder.layer.2",
        None,
        q="attention.self.query",
        k="attention.self.key",
        v="attention.self.value",
        attn="attention.output.dense",
        mlp="output.dense",
        map="attention",
        out="attention.output.dense",
        residual="post",
    ),
}
