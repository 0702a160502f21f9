"""The mask decoder: masks, their predicted IoU and the object's presence from a prompt.

Source: official `mask_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sam2_fast.config import Options, Sam2Config
from sam2_fast.model.layers import MLP, LayerNorm2d, OpModule, mlp_of, norm_of, to_tokens
from sam2_fast.model.two_way_transformer import TwoWayTransformer
from sam2_fast.ops.core.cache import Cache, derive
from sam2_fast.ops.mask_decoder import mask_decoder
from sam2_fast.ops.mask_decoder.reference import select_one
from sam2_fast.ops.mask_decoder.weights import MaskDecoderWeights, UpscalingWeights
from sam2_fast.ops.object_heads import stable_or_best
from sam2_fast.types import Prediction

NUM_MASKS = 4  # one for an unambiguous prompt, three for an ambiguous one


class DecoderOutput(NamedTuple):
    """Outputs of the decoder for B objects, before masks are selected."""

    logits: Tensor  # [B, M, 4h, 4w]
    iou: Tensor  # [B, 4] predicted IoU of all masks
    tokens: Tensor  # [B, T, 256]: presence, IoU, one of each mask, prompts
    first: int  # which of the four masks `logits` begins with


class MaskDecoder(OpModule[MaskDecoderWeights]):
    """The decoder. Which of its four masks are computed depends on the arguments of a call."""

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
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(dim, dim, dim // 8, 3) for _ in range(NUM_MASKS)
        )
        self.iou_prediction_head = MLP(dim, 256, NUM_MASKS, 3)
        self.pred_obj_score_head = MLP(dim, dim, 1, 3)
        self._output_tokens: Cache[Tensor] = Cache()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskDecoder:
        self._output_tokens.clear()
        super()._apply(fn, recurse)
        return self

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
        raw: bool = False,
    ) -> Prediction | DecoderOutput:
        """M = 3 masks of B objects if `multimask`, else M = 1.

        low: [1 or B, dim, h, w]. mid: [1 or B, dim / 4, 2h, 2w]. high: [1 or B, dim / 8, 4h, 4w].
        position: [1, dim, h, w]. sparse: [B, P, dim]. dense: [1 or B, dim, h or 1, w or 1].
        present: [B, P] bool, which sparse tokens are attended to; None: all.
        best: of three masks compute only that of highest predicted IoU, so M = 1.
        raw: return a `DecoderOutput`, for `ops.object_heads`.
        """
        learned = [self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight]
        output_tokens = self._output_tokens.get(lambda: torch.cat(learned), learned)
        sparse = sparse.to(output_tokens.dtype)
        # [B, 6 + P, dim]
        prompts = torch.cat([output_tokens.expand(sparse.shape[0], -1, -1), sparse], dim=1)
        if present is not None:
            present = torch.cat(
                [present.new_ones(present.shape[0], len(output_tokens)), present], dim=1
            )
        single = not multimask and not options.dynamic_multimask_via_stability
        if single:
            masks = range(1)
        else:
            masks = range(1 if multimask else 0, NUM_MASKS)
        image, mid, high = (x.permute(0, 2, 3, 1) for x in (low + dense, mid, high))
        image_position = to_tokens(position)[0]
        weights = self._weights_of(masks)
        heads = self.transformer.num_heads
        best = best and multimask
        logits, iou, tokens = mask_decoder(
            image,
            mid,
            high,
            image_position,
            prompts,
            present,
            weights,
            heads,
            2 + masks[0],
            1,
            best,
        )
        if raw:
            return DecoderOutput(logits, iou, tokens, masks[0])
        mask_tokens = tokens[:, 2 : 2 + NUM_MASKS]
        presence = self.pred_obj_score_head(tokens[:, 0])
        if best:
            choice = iou[:, 1:].argmax(-1)
            return Prediction(
                logits,
                select_one(iou[:, 1:], choice),
                select_one(mask_tokens[:, 1:], choice),
                presence,
            )
        if multimask:
            return Prediction(logits, iou[:, 1:], mask_tokens[:, 1:], presence)
        if single:
            return Prediction(logits, iou[:, :1], mask_tokens[:, :1], presence)
        delta = options.dynamic_multimask_stability_delta
        threshold = options.dynamic_multimask_stability_thresh
        logits, iou = stable_or_best(logits, iou, delta, threshold)
        # The pointer is always that of the single mask, as in training.
        return Prediction(logits, iou, mask_tokens[:, :1], presence)

    def gather_weights(self) -> MaskDecoderWeights:
        """The weights of `ops.mask_decoder`, with the hypernetworks of all masks."""
        transformer = self.transformer
        up1, up_norm, _, up2, _ = self.output_upscaling
        return MaskDecoderWeights(
            tuple(layer.gather_weights() for layer in transformer.layers),  # type: ignore[operator]
            transformer.final_attn_token_to_image.gather_weights(),
            norm_of(transformer.norm_final_attn),
            UpscalingWeights(up1.weight, up1.bias),  # type: ignore[arg-type]
            norm_of(up_norm),
            UpscalingWeights(up2.weight, up2.bias),  # type: ignore[arg-type]
            mlp_of(self.iou_prediction_head),
            tuple(map(mlp_of, self.output_hypernetworks_mlps)),
        )

    def _weights_of(self, masks: range) -> MaskDecoderWeights:
        """The weights of the op, with the hypernetworks of `masks` only."""
        weights = self.weights()
        if len(masks) == len(weights.masks):
            return weights
        selection = slice(masks.start, masks.stop)
        return derive(weights, f"{masks}", lambda: replace(weights, masks=weights.masks[selection]))
