"""The published computation in its plain form: what tests compare with and benchmarks are measured against.

Cross-attention of learned queries to tokens by `nn.MultiheadAttention`, which returns its full weights; a pre-norm
decoder layer whose target starts at zero; every token projected to every unit of its hemisphere and masked afterwards
(region queries), or every unit's token projected to every unit, of which the diagonal is read (unit queries).
"""

import torch
from torch import nn


class PlainDecoder(nn.Module):
    def __init__(self, n_queries, width, heads, ffn, dropout=0.0):
        super().__init__()
        self.query_embed = nn.Embedding(n_queries, width)
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.drops = nn.ModuleList([nn.Dropout(dropout) for _ in range(3)])
        self.final_norm = nn.LayerNorm(width)

    def forward(self, tokens, positions):
        target = torch.zeros(len(tokens), *self.query_embed.weight.shape)
        q = self.norm1(target) + self.query_embed.weight
        attended, weights = self.attention(q, tokens + positions, tokens, need_weights=True)
        target = target + self.drops[0](attended)
        hidden = self.drops[1](torch.relu(self.linear1(self.norm3(target))))
        target = target + self.drops[2](self.linear2(hidden))
        return self.final_norm(target), weights


class PlainRegions(nn.Module):
    """masks: one (region, unit) array of 0 and 1, int64, for each hemisphere."""

    def __init__(self, masks, width, heads, ffn, positions, dropout=0.0):
        super().__init__()
        self.masks, self.positions = masks, positions
        self.decoder = PlainDecoder(sum(len(mask) for mask in masks), width, heads, ffn, dropout)
        self.embeds = nn.ModuleList([nn.Linear(width, mask.shape[1]) for mask in masks])

    def forward(self, tokens):
        routed, _ = self.decoder(tokens, self.positions)
        outputs, first = [], 0
        for mask, embed in zip(self.masks, self.embeds, strict=True):
            projected = embed(routed[:, first : first + len(mask)])  # (image, region, unit)
            tiled = mask.unsqueeze(0).repeat(len(tokens), 1, 1)
            outputs.append((projected * tiled).sum(1))
            first += len(mask)
        return torch.cat(outputs, 1)


class PlainUnits(nn.Module):
    def __init__(self, n_units, width, heads, ffn, positions, dropout=0.0):
        super().__init__()
        self.positions = positions
        self.decoder = PlainDecoder(n_units, width, heads, ffn, dropout)
        self.embed = nn.Linear(width, n_units)

    def forward(self, tokens):
        routed, _ = self.decoder(tokens, self.positions)
        return torch.diagonal(self.embed(routed), dim1=1, dim2=2)  # of (image, unit, unit)


def take_over(plain, router, heads):
    """Give a plain module the parameters of one of ours."""
    attention, decoder = plain.decoder.attention, plain.decoder
    with torch.no_grad():
        decoder.query_embed.weight.copy_(router.queries())
        attention.in_proj_weight.copy_(torch.cat([router.wq, router.wk, router.wv]))
        attention.in_proj_bias.copy_(torch.cat([router.bq, torch.zeros_like(router.bq), router.bv]))
        attention.out_proj.weight.copy_(router.wo)
        attention.out_proj.bias.copy_(router.bo)
        for ours, layer in (("1", decoder.linear1), ("2", decoder.linear2)):
            layer.weight.copy_(getattr(router.ffn, "w" + ours))
            layer.bias.copy_(getattr(router.ffn, "b" + ours))
        regions = hasattr(heads, "back")
        weight = torch.cat(list(heads.weights))[heads.back] if regions else heads.weight
        bias, first = heads.bias[heads.back] if regions else heads.bias, 0
        for embed in getattr(plain, "embeds", None) or [plain.embed]:
            n = len(embed.bias)
            embed.weight.copy_(weight[first : first + n])
            embed.bias.copy_(bias[first : first + n])
            first += n
