"""Surprisal of tokens from the head of a causal language model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

SURPRISAL = "surprisal"  # the layer's name
_CHUNK = 128  # positions whose logits are held at once: a vocabulary of 128,000 in float32 takes 66 MB


def surprisal(
    hidden: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor, chunk: int = _CHUNK
) -> torch.Tensor:
    """How unexpected each token is, given those before it: minus log2 of its probability.

    Parameters
    ----------
    hidden : tensor (..., token, feature)
        What the model says last, after its final normalisation.
    head : callable
        From (position, feature) to logits (position, vocabulary).
    ids : tensor of int (..., token)
    chunk : int
        Positions whose logits are held at once.

    Returns
    -------
    tensor of float32 (..., token)
        Bits. NaN for the first token, which nothing precedes.

    References
    ----------
    Hale (2001) NAACL; Levy (2008) Cognition 106:1126-1177.
    """
    rows = hidden[..., :-1, :].flatten(0, -2)
    targets = ids[..., 1:].flatten()
    nats = [
        F.cross_entropy(head(rows[start : start + chunk]).float(), targets[start : start + chunk], reduction="none")
        for start in range(0, len(rows), chunk)
    ]
    bits = torch.full(ids.shape, torch.nan, dtype=torch.float32, device=hidden.device)
    if nats:
        bits[..., 1:] = torch.cat(nats).view(ids[..., 1:].shape) / math.log(2)
    return bits


class Surprisal(nn.Module):
    """The head of a causal model, as a part that gives bits per token instead of logits.

    Attributes
    ----------
    head : torch.nn.Module
        From features to logits.
    scale : float
        Factor of the logits.
    cap : float or None
        Logits x become ``cap * tanh(x / cap)`` (Gemma 2).
    """

    def __init__(self, head: nn.Module, scale: float = 1.0, cap: float | None = None) -> None:
        super().__init__()
        self.head = head
        self.scale = scale
        self.cap = cap

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the next token; the head's own hooks are not called, its outputs are no layer."""
        logits = self.head.forward(hidden) * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def forward(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return surprisal(hidden, self.logits, ids)


def with_surprisal(lm: Any) -> nn.Module:
    """The model below the head of a causal language model, with the layer "surprisal" at its end.

    Parameters
    ----------
    lm : PreTrainedModel
        A causal language model of transformers.

    Returns
    -------
    torch.nn.Module
        ``lm.base_model`` with a further part, which runs only when its output is asked for (by a hook). It is left
        out, with one warning, where head and model together do not give the logits that `lm` gives.
    """
    base, head = lm.base_model, lm.get_output_embeddings()
    config = lm.config.get_text_config()
    config.use_cache = False  # keys and values of past tokens are for generating text
    part = None
    if isinstance(head, nn.Module) and base is not lm:
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        part = Surprisal(head, float(scale), getattr(config, "final_logit_softcapping", None))
    if part is None or not _gives_the_logits(lm, base, part):
        warnings.warn(
            f"{type(lm).__name__} has no layer 'surprisal': its head does not follow its last hidden state directly",
            UserWarning,
            stacklevel=2,
        )
        return base
    base.add_module(SURPRISAL, part)
    base.register_forward_hook(_end_with_surprisal, with_kwargs=True)
    return base


def _end_with_surprisal(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    part = module.get_submodule(SURPRISAL)
    if part._forward_hooks:  # somebody listens
        part(output[0], kwargs["input_ids"] if "input_ids" in kwargs else args[0])


def _few_ids(model: Any, n: int) -> torch.Tensor:
    vocabulary = model.get_input_embeddings().num_embeddings
    return (torch.arange(1, n + 1, device=next(model.parameters()).device) % vocabulary)[None]


def _gives_the_logits(lm: Any, base: nn.Module, part: Surprisal) -> bool:
    ids, training = _few_ids(lm, 4), lm.training
    with torch.no_grad():
        lm.eval()
        expected, found = lm(input_ids=ids).logits, part.logits(base(input_ids=ids)[0])
    lm.train(training)
    return expected.shape == found.shape and torch.allclose(
        expected.float(), found.float(), rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    )


def has_causal_head(config: Any) -> bool:
    """Whether transformers has a head for the next token for this kind of model, and none for masked ones."""
    from transformers.models.auto import modeling_auto

    kind = config.model_type
    return (
        kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and kind not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def is_causal(module: Any) -> bool:
    """Whether a text model reads from left to right: what it says of a token does not depend on later tokens.

    Found by trial: the last of eight tokens is changed.
    """
    ids = _few_ids(module, 8)
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    training = module.training
    with torch.no_grad():
        module.eval()
        one, two = (module(input_ids=x)[0][0, :-1].float() for x in (ids, other))
    module.train(training)
    tolerance = max(1e-4, 4 * torch.finfo(next(module.parameters()).dtype).eps)
    return torch.allclose(one, two, rtol=tolerance, atol=tolerance * float(one.abs().max()))
