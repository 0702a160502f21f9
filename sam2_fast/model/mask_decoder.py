"""The mask decoder: masks, their predicted IoU and the object's presence from a prompt.

Source: official `mask_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sam2_fast.config import DECODER_OPTIONS, Options, Sam2Config
from sam2_fast.model.fusion import Fusion, OpModule, unusual_setting
from sam2_fast.model.layers import MLP, LayerNorm2d, mlp_of, norm_of, to_map, to_tokens
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
    """The decoder (official `MaskDecoder`).

    num_multimask_outputs: masks for an ambiguous prompt; there is one more for the others.
    activation: of the upscaling. iou_head_depth, iou_head_hidden_dim: layers of the IoU head.
    use_high_res_features: add features of stride 4 and 8.
    pred_obj_scores, pred_obj_scores_mlp: predict the object's presence, by three layers or by one.
    use_multimask_token_for_obj_ptr: pointers are those of the three masks, if they are computed.
    options: shared with the model; None: those of the `dynamic_...` arguments.
    """

    def __init__(
        self,
        *,
        transformer_dim: int,
        transformer: TwoWayTransformer,
        num_multimask_outputs: int = NUM_MASKS - 1,
        activation: type[nn.Module] = nn.GELU,
        iou_head_depth: int = 3,
        iou_head_hidden_dim: int = 256,
        use_high_res_features: bool = False,
        iou_prediction_use_sigmoid: bool = False,
        dynamic_multimask_via_stability: bool = False,
        dynamic_multimask_stability_delta: float = 0.05,
        dynamic_multimask_stability_thresh: float = 0.98,
        pred_obj_scores: bool = False,
        pred_obj_scores_mlp: bool = False,
        use_multimask_token_for_obj_ptr: bool = False,
        options: Options | None = None,
    ) -> None:
        super().__init__()
        dim = transformer_dim
        self._options = options or Options(
            dynamic_multimask_via_stability=dynamic_multimask_via_stability,
            dynamic_multimask_stability_delta=dynamic_multimask_stability_delta,
            dynamic_multimask_stability_thresh=dynamic_multimask_stability_thresh,
        )
        self.transformer_dim = dim
        self.transformer = transformer
        self.num_multimask_outputs = num_multimask_outputs
        self.iou_token = nn.Embedding(1, dim)
        self.num_mask_tokens = num_multimask_outputs + 1
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, dim)
        self.pred_obj_scores = pred_obj_scores
        if pred_obj_scores:
            self.obj_score_token = nn.Embedding(1, dim)
        self.use_multimask_token_for_obj_ptr = use_multimask_token_for_obj_ptr
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(dim // 4),
            activation(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            activation(),
        )
        self.use_high_res_features = use_high_res_features
        if use_high_res_features:
            self.conv_s0 = nn.Conv2d(dim, dim // 8, kernel_size=1)
            self.conv_s1 = nn.Conv2d(dim, dim // 4, kernel_size=1)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(dim, dim, dim // 8, 3) for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = MLP(
            dim,
            iou_head_hidden_dim,
            self.num_mask_tokens,
            iou_head_depth,
            sigmoid_output=iou_prediction_use_sigmoid,
        )
        if pred_obj_scores:
            mlp = pred_obj_scores_mlp
            self.pred_obj_score_head = MLP(dim, dim, 1, 3) if mlp else nn.Linear(dim, 1)
        self._output_tokens: Cache[Tensor] = Cache()
        self._fusion = Fusion({"": self})

    @classmethod
    def from_config(cls, config: Sam2Config, options: Options | None = None) -> MaskDecoder:
        """The mask decoder of an architecture. options: shared with the model."""
        dim = config.hidden_dim
        return cls(
            transformer_dim=dim,
            transformer=TwoWayTransformer(2, dim, num_heads=8, mlp_dim=config.decoder_mlp_dim),
            use_high_res_features=True,
            iou_prediction_use_sigmoid=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            use_multimask_token_for_obj_ptr=True,
            options=options or Options(),
        )

    def reason_against_op(self) -> str | None:
        """The op is the decoder of the released models, with any number of channels and heads."""
        transformer: Any = self.transformer
        upscaling: Any = self.output_upscaling
        acts = [(type(act), getattr(act, "approximate", None)) for act in upscaling[2::2]]
        layers = getattr(transformer, "layers", [])
        first = [getattr(layer, "skip_first_layer_pe", None) for layer in layers]
        head = self.iou_prediction_head
        return unusual_setting(
            transformer=(type(transformer), TwoWayTransformer),
            skip_first_layer_pe=(first, [True, False]),
            num_multimask_outputs=(self.num_multimask_outputs, NUM_MASKS - 1),
            activation=(acts, [(nn.GELU, "none")] * 2),
            iou_head_depth=(head.num_layers, 3),
            iou_prediction_use_sigmoid=(head.sigmoid_output, True),
            use_high_res_features=(self.use_high_res_features, True),
            pred_obj_scores=(self.pred_obj_scores, True),
            pred_obj_scores_mlp=(type(getattr(self, "pred_obj_score_head", None)), MLP),
            use_multimask_token_for_obj_ptr=(self.use_multimask_token_for_obj_ptr, True),
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskDecoder:
        self._output_tokens.clear()
        super()._apply(fn, recurse)
        return self

    @property
    def options(self) -> Options:
        """The options of the model that the decoder was made for."""
        return self._options

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
        repeat_image: bool,
        high_res_features: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits [B, M, 4h, 4w], IoU [B, M], mask tokens [B, M or 1, C] and presence [B, 1].

        M = 3 masks of B prompts if `multimask_output`, else M = 1.
        image_embeddings: [B, C, h, w], or [1, C, h, w] for all prompts with `repeat_image`.
        image_pe: [1, C, h, w]. sparse_prompt_embeddings: [B, P, C].
        dense_prompt_embeddings: [B, C, h, w].
        high_res_features: [1 or B, C / 8, 4h, 4w] and [1 or B, C / 4, 2h, 2w].
        Raises ValueError if they are None.
        """
        count = len(sparse_prompt_embeddings)
        inputs = image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings
        shared = repeat_image and len(image_embeddings) == 1
        weights = None
        if self.use_high_res_features and (shared or len(image_embeddings) == count):
            fine = self._require_fine(high_res_features)
            weights = self.op_weights(*inputs, *fine)
        if weights is not None:
            output = self.run_op(*inputs, *fine, multimask_output, weights)
            selected = self.select(output, multimask_output)
            return selected.logits, selected.iou, selected.tokens, selected.presence
        masks, iou, tokens, presence = self.predict_masks(
            image_embeddings=image_embeddings,
            image_pe=image_pe,
            sparse_prompt_embeddings=sparse_prompt_embeddings,
            dense_prompt_embeddings=dense_prompt_embeddings,
            repeat_image=repeat_image,
            high_res_features=high_res_features,
        )
        pointers = tokens[:, :1]  # that of the single mask, as in training
        if multimask_output:
            masks, iou = masks[:, 1:], iou[:, 1:]
            if self.use_multimask_token_for_obj_ptr:
                pointers = tokens[:, 1:]
        elif self.options.dynamic_multimask_via_stability and not self.training:
            masks, iou = self._dynamic_multimask_via_stability(masks, iou)
        else:
            masks, iou = masks[:, :1], iou[:, :1]
        return masks, iou, pointers, presence

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        repeat_image: bool,
        high_res_features: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four masks and their tokens; arguments and results are those of `forward`."""
        learned = [self.iou_token.weight, self.mask_tokens.weight]
        if self.pred_obj_scores:
            learned.insert(0, self.obj_score_token.weight)
        count = sparse_prompt_embeddings.shape[0]
        output_tokens = torch.cat(learned)[None].expand(count, -1, -1)
        tokens = torch.cat([output_tokens, sparse_prompt_embeddings], dim=1)
        if not repeat_image and len(image_embeddings) != count:
            raise ValueError(
                f"image_embeddings: expected a batch of {count}, that of the prompts, without "
                f"repeat_image, got {len(image_embeddings)}"
            )
        image = image_embeddings
        if repeat_image:
            image = torch.repeat_interleave(image, count, dim=0)
        image = image + dense_prompt_embeddings
        position = torch.repeat_interleave(image_pe, count, dim=0)
        height, width = image.shape[2:]
        tokens, image = self.transformer(image, position, tokens)
        upscaled = self._upscale(to_map(image, height, width), high_res_features)
        first = 1 if self.pred_obj_scores else 0
        iou = self.iou_prediction_head(tokens[:, first])
        mask_tokens = tokens[:, first + 1 : first + 1 + self.num_mask_tokens]
        hypernetworks = [
            mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)
        ]
        masks = torch.stack(hypernetworks, dim=1) @ upscaled.flatten(2)
        if self.pred_obj_scores:
            presence = self.pred_obj_score_head(tokens[:, 0])
        else:
            presence = 10.0 * iou.new_ones(count, 1)
        return masks.unflatten(2, upscaled.shape[2:]), iou, mask_tokens, presence

    def _upscale(self, image: Tensor, high_res_features: Sequence[Tensor] | None) -> Tensor:
        """image: [B, C, h, w] -> [B, C / 8, 4h, 4w]."""
        if not self.use_high_res_features:
            return self.output_upscaling(image)
        fine = self._require_fine(high_res_features)
        up1, norm, act1, up2, act2 = self.output_upscaling
        image = act1(norm(up1(image) + fine[1]))
        return act2(up2(image) + fine[0])

    def run_op(
        self,
        low: Tensor,
        position: Tensor,
        sparse: Tensor,
        dense: Tensor,
        high: Tensor,
        mid: Tensor,
        multimask: bool,
        weights: MaskDecoderWeights,
        present: Tensor | None = None,
        best: bool = False,
    ) -> DecoderOutput:
        """The masks by the op, before one is selected: see `select`.

        low: [1 or B, dim, h, w]. mid: [1 or B, dim / 4, 2h, 2w]. high: [1 or B, dim / 8, 4h, 4w].
        position: [1, dim, h, w]. sparse: [B, P, dim]. dense: [1 or B, dim, h or 1, w or 1].
        weights: from `op_weights`.
        present: [B, P] bool, which sparse tokens are attended to; None: all.
        best: of three masks compute only that of highest predicted IoU.
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
        masks = self._masks(multimask)
        image, mid, high = (x.permute(0, 2, 3, 1) for x in (low + dense, mid, high))
        logits, iou, tokens = mask_decoder(
            image,
            mid,
            high,
            to_tokens(position)[0],
            prompts,
            present,
            self._weights_of(weights, masks),
            self.transformer.num_heads,
            2 + masks[0],
            1,
            best and multimask,
        )
        return DecoderOutput(logits, iou, tokens, masks[0])

    def select(self, output: DecoderOutput, multimask: bool, best: bool = False) -> Prediction:
        """The masks that `forward` returns. best: as in `run_op`."""
        logits, iou, tokens, _ = output
        mask_tokens = tokens[:, 2 : 2 + NUM_MASKS]
        presence = self.pred_obj_score_head(tokens[:, 0])
        if best and multimask:
            choice = iou[:, 1:].argmax(-1)
            return Prediction(
                logits,
                select_one(iou[:, 1:], choice),
                select_one(mask_tokens[:, 1:], choice),
                presence,
            )
        if multimask:
            return Prediction(logits, iou[:, 1:], mask_tokens[:, 1:], presence)
        if len(self._masks(multimask)) == 1:
            return Prediction(logits, iou[:, :1], mask_tokens[:, :1], presence)
        logits, iou = self._dynamic_multimask_via_stability(logits, iou)
        # The pointer is always that of the single mask, as in training.
        return Prediction(logits, iou, mask_tokens[:, :1], presence)

    def _masks(self, multimask: bool) -> range:
        """Which of the four masks are computed."""
        if multimask:
            return range(1, NUM_MASKS)
        dynamic = self.options.dynamic_multimask_via_stability and not self.training
        return range(NUM_MASKS if dynamic else 1)

    def _require_fine(self, high_res_features: Sequence[Tensor] | None) -> tuple[Tensor, Tensor]:
        if high_res_features is None or len(high_res_features) != 2:
            raise ValueError(
                "high_res_features: expected the maps of stride 4 and 8; every released model "
                "uses them"
            )
        return high_res_features[0], high_res_features[1]

    def _get_stability_scores(self, mask_logits: Tensor) -> Tensor:
        """mask_logits: [..., h, w] -> [...]: IoU of the masks at thresholds of +-delta."""
        delta = self.options.dynamic_multimask_stability_delta
        flat = mask_logits.flatten(-2)
        inner, outer = ((flat > threshold).sum(-1).float() for threshold in (delta, -delta))
        return torch.where(outer > 0, inner / outer, 1.0)

    def _dynamic_multimask_via_stability(
        self, all_mask_logits: Tensor, all_iou_scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The first mask if it is stable, else the best one of the others, and its IoU.

        all_mask_logits: [B, 4, h, w]; all_iou_scores: [B, 4] -> [B, 1, h, w] and [B, 1].
        """
        return stable_or_best(
            all_mask_logits,
            all_iou_scores,
            self.options.dynamic_multimask_stability_delta,
            self.options.dynamic_multimask_stability_thresh,
        )

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

    def _weights_of(self, weights: MaskDecoderWeights, masks: range) -> MaskDecoderWeights:
        """The weights of the op, with the hypernetworks of `masks` only."""
        if len(masks) == len(weights.masks):
            return weights
        selection = slice(masks.start, masks.stop)
        return derive(weights, f"{masks}", lambda: replace(weights, masks=weights.masks[selection]))


def _option(name: str) -> property:
    """An option as an attribute of the decoder."""

    def get(decoder: MaskDecoder) -> Any:
        return getattr(decoder.options, name)

    def put(decoder: MaskDecoder, value: Any) -> None:
        setattr(decoder.options, name, getattr(decoder.options.updated(**{name: value}), name))

    return property(get, put)


for _name in DECODER_OPTIONS:
    setattr(MaskDecoder, _name, _option(_name))
