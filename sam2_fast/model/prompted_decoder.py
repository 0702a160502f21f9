"""Prompts decoded by ops: embeddings, masks, the object pointer and the presence of the object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sam2_fast.config import NO_OBJECT_LOGIT, Options
from sam2_fast.model.fusion import Fusion
from sam2_fast.model.layers import mlp_of
from sam2_fast.model.mask_decoder import DecoderOutput, MaskDecoder
from sam2_fast.model.prompt_encoder import PromptEncoder, padding_points
from sam2_fast.ops.mask_decoder.reference import select_one
from sam2_fast.ops.object_heads import ObjectHeadsWeights, object_heads
from sam2_fast.types import Features, NoPoints, Points, Prediction

if TYPE_CHECKING:
    from sam2_fast.model.sam2 import Sam2


def decode_by_op(
    model: Sam2,
    low: Tensor,
    features: Features,
    points: Points | NoPoints | None,
    hint: Tensor | None,
    multimask: bool,
    best: bool,
) -> DecoderOutput | None:
    """Embed prompts and decode them, or None if the decoder's parts must be called.

    The arguments are those of `Sam2.decode`.
    """
    decoder = model.sam_mask_decoder
    if type(decoder) is not MaskDecoder:
        return None
    weights = decoder.op_weights(low, features.high, features.mid)
    if weights is None:
        return None
    if hint is not None:
        hint = model.in_weights_dtype(hint)
    encoder = model.sam_prompt_encoder
    if type(encoder) is PromptEncoder and encoder.is_untouched():
        # Kernels for a CPU read float32.
        position = encoder.dense_position(low.dtype if low.is_cuda else None)
        sparse, dense = _embed(encoder, points, hint), encoder.embed_mask(hint)
    else:
        if isinstance(points, NoPoints):
            points = padding_points(points.objects, low.device)
        pair = None if points is None else (points.coords, points.labels)
        sparse, dense = encoder(points=pair, boxes=None, masks=hint)
        position = encoder.get_dense_pe()
    present = points.present if isinstance(points, Points) else None
    if present is not None:  # the appended padding point is always present
        present = torch.cat([present, present.new_ones(len(present), 1)], dim=1)
    maps = features.high, features.mid
    return decoder.run_op(low, position, sparse, dense, *maps, multimask, weights, present, best)


def _embed(encoder: PromptEncoder, points: Points | NoPoints | None, hint: Tensor | None) -> Tensor:
    """Sparse embeddings [B, P, dim]; without points there are none, for the hints of B prompts."""
    if isinstance(points, NoPoints):
        return encoder.padding(points.objects)
    if points is not None:
        return encoder.embed(points.coords, points.labels)
    assert hint is not None
    return hint.new_zeros(hint.shape[0], 0, encoder.embed_dim)


def best_of(prediction: Prediction) -> Prediction:
    """The mask of highest predicted IoU of each object, if there are several."""
    logits, iou, tokens, presence = prediction
    if iou.shape[1] == 1:
        return prediction
    choice = iou.argmax(-1)
    logits, iou, tokens = (select_one(x, choice) for x in (logits, iou, tokens))
    return Prediction(logits, iou, tokens, presence)


class FusedHeads:
    """The weights of `ops.object_heads`: those of the presence head and the pointer projection."""

    def __init__(self, decoder: MaskDecoder, projection: nn.Module) -> None:
        self._fusion: Fusion[ObjectHeadsWeights] = Fusion(_roots(decoder, projection))

    @property
    def cached_values(self) -> list[object]:
        """The weights and the values derived from them; empty if nothing is cached."""
        return self._fusion.cached_values

    def clear(self) -> None:
        """Drop the weights, after changes that cannot be detected."""
        self._fusion.clear()

    def weights(
        self, decoder: nn.Module, projection: nn.Module, *inputs: Tensor
    ) -> ObjectHeadsWeights | None:
        """The weights, or None if the heads must be called."""
        if type(decoder) is not MaskDecoder:
            return None
        head = decoder.pred_obj_score_head
        return self._fusion.weights(
            _roots(decoder, projection),
            lambda: ObjectHeadsWeights(mlp_of(head), mlp_of(projection)),
            *inputs,
        )


def _roots(decoder: MaskDecoder, projection: nn.Module) -> dict[str, nn.Module]:
    return {
        "sam_mask_decoder.pred_obj_score_head": decoder.pred_obj_score_head,
        "obj_ptr_proj": projection,
    }


def run_heads(
    output: DecoderOutput,
    weights: ObjectHeadsWeights,
    absent_pointer: Tensor,
    multimask: bool,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of `Sam2.track` from the decoder's outputs, by `ops.object_heads`.

    absent_pointer: that of an absent object, [1, 256].
    """
    return object_heads(
        output.logits.float(),
        output.iou,
        output.tokens,
        weights,
        absent_pointer,
        2 + output.first,
        multimask,
        options.dynamic_multimask_stability_delta,
        options.dynamic_multimask_stability_thresh,
        NO_OBJECT_LOGIT,
    )
