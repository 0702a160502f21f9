"""Mask decoder: fused features and a prompt to masks, their quality and the object's presence (official `mask_decoder.py`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam2_fast.config import Options, Sam2Config
from sam2_fast.model.layers import MLP, LayerNorm2d, Narrowing, parameters_of, to_tokens
from sam2_fast.model.two_way_transformer import TwoWayTransformer
from sam2_fast.ops.mask_decoder import BODY, HEAD, mask_decoder
from sam2_fast.types import Prediction

NUM_MASKS = 4  # one for an unambiguous prompt, three for an ambiguous one


class MaskDecoder(Narrowing):
    """Weights and steps of the decoder; which of the four masks are wanted is the caller's argument."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.transformer = TwoWayTransformer(dim, num_heads=8, mlp_dim=config.decoder_mlp_dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(NUM_MASKS, dim)
        self.obj_score_token = nn.Embedding(1, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.conv_s0 = nn.Conv2d(dim, dim // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(dim, dim // 4, kernel_size=1)
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(NUM_MASKS))
        self.iou_prediction_head = MLP(dim, 256, NUM_MASKS, 3)
        self.pred_obj_score_head = MLP(dim, dim, 1, 3)

    def forward(
        self,
        low: Tensor,
        position: Tensor,
        sparse: Tensor,
        dense: Tensor,
        high: Tensor,
        mid: Tensor,
        multimask: bool,
        options: Options,
        present: Tensor | None = None,
        best: bool = False,
    ) -> Prediction:
        """low: [1 or B, dim, h, w]; position: [1, dim, h, w]; sparse: [B, P, dim]; dense: [1 or B, dim, h or 1, w or 1];
        high: [1 or B, dim / 8, 4h, 4w]; mid: [1 or B, dim / 4, 2h, 2w] -> M = 3 masks if `multimask`, else 1.
        present: [B, P] bool, which sparse tokens count (None: all). best: of three masks only that of highest predicted IoU, M = 1.
        """
        first = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight])
        sparse = sparse.to(first.dtype)
        prompts = torch.cat([first.expand(sparse.shape[0], -1, -1), sparse], dim=1)  # [B, 6 + P, dim]
        if present is not None:
            present = torch.cat([present.new_ones(present.shape[0], first.shape[0]), present], dim=1)
        single = not multimask and not options.dynamic_multimask_via_stability
        which = range(1) if single else range(1, NUM_MASKS) if multimask else range(NUM_MASKS)
        image, mid, high = (x.permute(0, 2, 3, 1) for x in (low + dense, mid, high))
        place = to_tokens(position)[0]
        weights = self._weights(which)
        heads, best = self.transformer.num_heads, best and multimask
        logits, iou, tokens = mask_decoder(image, mid, high, place, prompts, present, weights, heads, 2 + which[0], 1, best)
        mask_tokens = tokens[:, 2 : 2 + NUM_MASKS]
        presence = self.pred_obj_score_head(tokens[:, 0])
        if best:
            choice = iou[:, 1:].argmax(-1)
            return Prediction(logits, take(iou[:, 1:], choice), take(mask_tokens[:, 1:], choice), presence)
        if multimask:
            return Prediction(logits, iou[:, 1:], mask_tokens[:, 1:], presence)
        if single:
            return Prediction(logits, iou[:, :1], mask_tokens[:, :1], presence)
        logits, iou = stable_or_best(logits, iou, options)
        # the pointer stays that of the single mask: training saw no other
        return Prediction(logits, iou, mask_tokens[:, :1], presence)

    def _weights(self, which: range) -> list[Tensor]:
        """What the op takes: of the masks, the layers by which the tokens `which` draw."""
        up1, norm, _, up2, _ = self.output_upscaling
        networks = [layer for network in self.output_hypernetworks_mlps if isinstance(network, MLP) for layer in network.layers]
        every = [*self.transformer.weights(), *parameters_of(up1, norm, up2, *self.iou_prediction_head.layers, *networks)]
        every = [*self.narrowed(every, [i for i, w in enumerate(every) if w.ndim > 1])]
        for i in (BODY - 6, BODY - 2):  # transposed convolutions as matrices: rows by place in the cell, then channel
            every[i] = every[i].permute(2, 3, 1, 0).flatten(0, 2)
        first = BODY + HEAD * (1 + which[0])
        return [*every[: BODY + HEAD], *every[first : first + HEAD * len(which)]]


def stable_or_best(logits: Tensor, iou: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The single mask where it is stable, else the ambiguous one of highest predicted IoU.

    logits: [B, 4, H, W]; iou: [B, 4] -> [B, 1, H, W], [B, 1]. Source: official `_dynamic_multimask_via_stability`.
    """
    delta = options.dynamic_multimask_stability_delta
    single = logits[:, 0].flatten(1)
    inner, outer = (single > delta).sum(-1).float(), (single > -delta).sum(-1).float()
    stable = torch.where(outer > 0, inner / outer, 1.0) >= options.dynamic_multimask_stability_thresh
    choice = torch.where(stable, 0, 1 + iou[:, 1:].argmax(-1))
    return take(logits, choice), take(iou, choice)


def take(values: Tensor, choice: Tensor) -> Tensor:
    """values: [B, M, ...]; choice: [B] -> [B, 1, ...]."""
    return values[torch.arange(values.shape[0], device=values.device), choice][:, None]
