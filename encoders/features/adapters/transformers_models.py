"""What is known of the types of models that transformers has: who they are, and what their last layers mean.

A type that is not named here loads all the same; then its card says less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_NORMED_LAST = (
    "outputs of blocks are not normalised; the last of transformers' hidden_states is, by {norm}, and equals "
    "last_hidden_state: take layer {norm} for it"
)
_PLAIN_LAST = "the last of transformers' hidden_states is the last block, not normalised; last_hidden_state is {norm}"
_SAME_LAST = "the last block is the last of transformers' hidden_states and last_hidden_state"


@dataclass(frozen=True)
class Family:
    """A type of model.

    Attributes
    ----------
    title, citation : str
    reads : {"image", "text", "clip", "sound", "image and text"}
    norm : str
        How the last block, the final normalisation and transformers' hidden states hang together.
    """

    title: str
    citation: str
    reads: str
    norm: str = ""


_STAGES = "hidden_states of transformers are outputs of stages; blocks lie within them, nothing normalises the last"
_SPEECH = (
    "base models: the last block is the last of transformers' hidden_states and last_hidden_state. Models that "
    "normalise first (do_stable_layer_norm): last_hidden_state is encoder.layer_norm, hidden_states are not normalised"
)

FAMILIES = {
    "gpt2": Family("GPT-2", "Radford et al. 2019, OpenAI", "text", _NORMED_LAST.format(norm="ln_f")),
    "llama": Family("Llama", "Touvron et al. 2023, arXiv 2302.13971", "text", _NORMED_LAST.format(norm="norm")),
    "bert": Family("BERT", "Devlin et al. 2019, NAACL", "text", _SAME_LAST),
    "vit": Family("Vision Transformer", "Dosovitskiy et al. 2021, ICLR", "image", _PLAIN_LAST.format(norm="layernorm")),
    "dinov2": Family("DINOv2", "Oquab et al. 2024, TMLR", "image", _PLAIN_LAST.format(norm="layernorm")),
    "dinov2_with_registers": Family(
        "DINOv2 with registers", "Darcet et al. 2024, ICLR", "image", _PLAIN_LAST.format(norm="layernorm")
    ),
    "clip": Family(
        "CLIP",
        "Radford et al. 2021, ICML",
        "image and text",
        "images: the last block is last_hidden_state, not normalised; post_layernorm is of the class token alone. "
        "Text: last_hidden_state is final_layer_norm",
    ),
    "clip_vision_model": Family(
        "CLIP, images",
        "Radford et al. 2021, ICML",
        "image",
        "the last block is last_hidden_state, not normalised; post_layernorm is of the class token alone",
    ),
    "siglip": Family(
        "SigLIP",
        "Zhai et al. 2023, ICCV",
        "image and text",
        "hidden_states are outputs of blocks; last_hidden_state is post_layernorm (images), final_layer_norm (text)",
    ),
    "siglip_vision_model": Family(
        "SigLIP, images", "Zhai et al. 2023, ICCV", "image", _PLAIN_LAST.format(norm="post_layernorm")
    ),
    "resnet": Family("ResNet", "He et al. 2016, CVPR", "image", _STAGES),
    "convnext": Family(
        "ConvNeXt", "Liu et al. 2022, CVPR", "image", _STAGES + "; layernorm is of the pooled map alone"
    ),
    "wav2vec2": Family("wav2vec 2.0", "Baevski et al. 2020, NeurIPS", "sound", _SPEECH),
    "hubert": Family("HuBERT", "Hsu et al. 2021, IEEE/ACM TASLP", "sound", _SPEECH),
    "whisper": Family("Whisper, encoder", "Radford et al. 2023, ICML", "sound", _NORMED_LAST.format(norm="layer_norm")),
    "videomae": Family(
        "VideoMAE",
        "Tong et al. 2022, NeurIPS",
        "clip",
        _SAME_LAST + " (models that pool the class token instead end with layernorm)",
    ),
    "vjepa2": Family(
        "V-JEPA 2", "Assran et al. 2025, arXiv 2506.09985", "clip", _PLAIN_LAST.format(norm="encoder.layernorm")
    ),
}

_BY_INPUT = {
    "pixel_values": "image",
    "pixel_values_videos": "clip",
    "input_ids": "text",
    "input_values": "sound",
    "input_features": "sound",
}


def family_of(config: Any, module: Any) -> Family:
    """What is known of a model: by its type, else by what its forward pass reads.

    Raises
    ------
    ValueError
        If it reads something else than images, text, video or sound.
    """
    known = FAMILIES.get(getattr(config, "model_type", ""))
    if known is not None:
        return known
    main = getattr(module, "main_input_name", "")
    if main not in _BY_INPUT:
        raise ValueError(f"it reads {main!r}; expected one of {', '.join(_BY_INPUT)}")
    return Family(type(module).__name__, "", _BY_INPUT[main])
