"""SAM 2 as one module of five parts. It has no state between calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.config import IMAGE_POSTPROCESSING, NO_OBJECT_LOGIT, Options, Sam2Config
from sam2_fast.model.image_encoder import ImageEncoder
from sam2_fast.model.layers import (
    MLP,
    Table,
    mlp_of,
    to_map,
    to_tokens,
    untouched,
    untouched_mlp,
)
from sam2_fast.model.mask_decoder import DecoderOutput, MaskDecoder
from sam2_fast.model.memory_attention import MemoryAttention
from sam2_fast.model.memory_encoder import MemoryEncoder
from sam2_fast.model.object_pointer import age_position, split_pointers
from sam2_fast.model.position import RandomPosition, sine_tokens
from sam2_fast.model.prompt_encoder import PromptEncoder, padding_points
from sam2_fast.model.proofs import respects_prove
from sam2_fast.ops.core.cache import Cache, WeightsCache
from sam2_fast.ops.core.transfer import upload_numbers
from sam2_fast.ops.memory_attention import Memories
from sam2_fast.ops.memory_attention.table import MemoryTable
from sam2_fast.ops.object_heads import ObjectHeadsWeights, mix_absent, object_heads
from sam2_fast.types import Features, NoPoints, Points, Prediction, RecallLimits


class Sam2(nn.Module):
    """Image encoder, memory attention, prompt encoder, mask decoder and memory encoder.

    The state dict is the official one. S = `config.image_size` pixels, h = w = S / 16 tokens. The
    model computes in the dtype of its weights, or in the caller's autocast dtype.
    """

    prove: bool = True
    """Whether kernels on a GPU must be proved before this model runs them; see docs/proving.md."""
    postprocessing: ClassVar[Mapping[str, Any]] = IMAGE_POSTPROCESSING
    """Options that the builders set if `apply_postprocessing` is True."""

    def __init__(self, config: Sam2Config, options: Options | None = None) -> None:
        super().__init__()
        self.config = config
        self.options = options or Options()
        dim = config.hidden_dim
        memory_dim = config.memory_dim
        side = config.grid
        self.image_encoder = ImageEncoder(config)
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.memory_attention = MemoryAttention(config)
        self.memory_encoder = MemoryEncoder(config)
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(config.num_maps, 1, 1, memory_dim))
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, dim))
        # Part of the checkpoints, but no released model reads it.
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, dim))
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, dim))
        self.sam_prompt_encoder = PromptEncoder(config)
        self.sam_mask_decoder = MaskDecoder(config)
        self.obj_ptr_proj = MLP(dim, dim, dim, 3)
        if config.version == "2.1":
            self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, memory_dim))
            self.obj_ptr_tpos_proj = nn.Linear(dim, memory_dim)
        for parameter in (
            self.maskmem_tpos_enc,
            self.no_mem_embed,
            self.no_mem_pos_enc,
            self.no_obj_ptr,
        ):
            nn.init.trunc_normal_(parameter, std=0.02)
        self._image_position = Table(partial(sine_tokens, dim, side))  # [h * w, 256]
        self._memory_position = Table(partial(sine_tokens, memory_dim, side))  # [h * w, 64]
        self._object_heads: WeightsCache[ObjectHeadsWeights] = WeightsCache()
        self._tables: Cache[list[Tensor]] = Cache()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.no_mem_embed.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.no_mem_embed.dtype

    @property
    def recall_limits(self) -> RecallLimits:
        """Limits on the memories that a frame attends to, for `MemoryBank.recall`."""
        options = self.options
        return RecallLimits(
            self.config.num_maps,
            options.max_obj_ptrs_in_encoder,
            options.memory_temporal_stride_for_eval,
            options.max_cond_frames_in_attn,
        )

    def __repr__(self) -> str:
        """One line; `torch.nn.Module.__repr__(model)` is the tree of modules."""
        count = sum(p.numel() for p in self.parameters())
        config = self.config
        facts = (
            f"version={config.version!r}, image_size={config.image_size}, "
            f"embed_dim={config.embed_dim}, stages={config.stages}"
        )
        return (
            f"{type(self).__name__}({facts}, {count / 1e6:.1f} M parameters, {self.dtype} on "
            f"{self.device})"
        )

    def _enter(self, x: Tensor) -> Tensor:
        """x in the dtype of the weights; under autocast, x itself."""
        return x if torch.is_autocast_enabled(x.device.type) else x.to(self.dtype)

    @respects_prove
    def encode_image(self, images: Tensor) -> Features:
        """images: [B, 3, S, S], normalised -> features of B images.

        The decoder's projections of the fine levels are already applied.
        """
        neck = self.image_encoder.neck
        decoder = self.sam_mask_decoder
        maps = self.image_encoder.trunk(self._enter(images))
        return Features(neck.low(maps), *neck.projected(maps, decoder.conv_s1, decoder.conv_s0))

    def without_memory(self, low: Tensor) -> Tensor:
        """low: [B, 256, h, w] -> the same shape: features of a frame that attends to no memory."""
        return low + self.no_mem_embed.view(1, -1, 1, 1)

    @respects_prove
    def attend(
        self,
        low: Tensor,
        maps: Sequence[Sequence[Tensor]],
        rows: Sequence[Sequence[int]],
        pointers: Sequence[Tensor],
        ages: Sequence[Sequence[float]],
        longest: int,
    ) -> Tensor:
        """Features of a frame fused with the memories of B objects, [B, 256, h, w].

        low: [1 or B, 256, h, w]. Every object has at least one map or pointer:
        maps: [h * w, 64] each. rows: of the temporal table, one for each map.
        pointers: [P, 256] of each object. ages: in frames, one for each pointer.
        longest: the age that is scaled to 1.
        Source: official `_prepare_memory_conditioned_features`.
        """
        dtype = low.dtype
        memory_dim = self.config.memory_dim
        tokens_per_pointer = self.config.hidden_dim // memory_dim
        flat_maps = list(chain.from_iterable(maps))
        flat_ages = upload_numbers(list(chain.from_iterable(ages)), torch.float32, low.device)
        memories = Memories(
            flat_maps,
            list(range(len(flat_maps))),
            list(chain.from_iterable(rows)),
            [0, *accumulate(map(len, maps))],
            split_pointers(torch.cat(list(pointers)).to(dtype)[None], memory_dim)[0],
            self.pointer_positions(flat_ages, longest).to(dtype),
            [0, *accumulate(tokens_per_pointer * len(own) for own in pointers)],
        )
        return self.attend_at(low, memories)

    def pointer_positions(self, ages: Tensor, longest: int) -> Tensor:
        """ages: [P] frames -> [P * 4, 64]: added to the keys of each pointer's four tokens."""
        project = getattr(self, "obj_ptr_tpos_proj", None)
        dim, memory_dim = self.config.hidden_dim, self.config.memory_dim
        position = age_position(ages[None], longest, project, dim, memory_dim)[0]
        return position.repeat_interleave(dim // memory_dim, dim=0)

    @respects_prove
    def attend_at(self, low: Tensor, memories: Memories | MemoryTable) -> Tensor:
        """`attend` for arguments of the op: low [1 or B, 256, h, w] -> [B, 256, h, w]."""
        side = self.config.grid
        dtype = low.dtype
        constants = self.maskmem_tpos_enc[:, 0, 0], self._memory_position(), self._image_position()
        parameters = [self.maskmem_tpos_enc, *constants[1:]]
        temporal, memory_position, position = self._tables.get(
            lambda: [x.to(dtype) for x in constants], parameters, dtype
        )
        fused = self.memory_attention(
            to_tokens(low), position[None], memories, temporal, memory_position
        )
        return to_map(fused, side, side)

    @respects_prove
    def decode(
        self,
        low: Tensor,
        features: Features,
        points: Points | NoPoints | None,
        hint: Tensor | None,
        multimask: bool,
        best: bool = False,
    ) -> Prediction:
        """Masks of B prompts.

        low: [1 or B, 256, h, w] fused features.
        points: None: only the hint, without a padding point (as in upstream's image predictor).
        hint: [B, 1, 4h, 4w] logits of an earlier mask, or None.
        best: of three masks compute only that of highest predicted IoU.
        """
        prediction: Prediction = self._run_decoder(
            low, features, points, hint, multimask, best, raw=False
        )
        return prediction._replace(logits=prediction.logits.float())

    def _run_decoder(
        self,
        low: Tensor,
        features: Features,
        points: Points | NoPoints | None,
        hint: Tensor | None,
        multimask: bool,
        best: bool,
        raw: bool,
    ) -> Any:
        """Embed prompts and decode them: a `DecoderOutput` if `raw`, else a `Prediction`."""
        low = self._enter(low)
        encoder = self.sam_prompt_encoder
        present = None
        plain = untouched(encoder, PromptEncoder) and untouched(encoder.pe_layer, RandomPosition)
        if isinstance(points, NoPoints) and not plain:  # a point of label -1 is padding, too
            points = padding_points(points.objects, low.device)
        if isinstance(points, NoPoints):
            sparse, dense = encoder.padding(points.objects), encoder.embed_mask(hint)
        elif points is None:
            assert hint is not None
            sparse = low.new_zeros(hint.shape[0], 0, self.config.hidden_dim)
            dense = encoder.embed_mask(hint)
        else:
            sparse, dense = encoder(points.coords, points.labels, hint)
            if points.present is not None:  # the appended padding point is always present
                present = torch.cat(
                    [points.present, points.present.new_ones(points.present.shape[0], 1)], dim=1
                )
        if plain and low.is_cuda:
            position = encoder.get_dense_pe(low.dtype)
        else:  # kernels for a CPU read float32
            position = encoder.get_dense_pe()
        maps = features.high, features.mid
        inputs = low, position, sparse, dense, *maps, multimask, self.options, present, best
        if raw:
            return self.sam_mask_decoder(*inputs, raw)
        return self.sam_mask_decoder(*inputs)  # a replaced decoder may have no parameter `raw`

    @respects_prove
    def track(
        self,
        low: Tensor,
        features: Features,
        points: Points | NoPoints,
        hint: Tensor | None,
        multimask: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`decode`, then the best mask, its pointer and presence: [B, 1, 4h, 4w], [B, 256], [B, 1].

        Masks of absent objects are -1024 everywhere. Source: official `_forward_sam_heads`.
        """
        options = self.options
        own_decode = type(self).decode is Sam2.decode and "decode" not in vars(self)
        if own_decode and untouched(self.sam_mask_decoder, MaskDecoder) and self._plain_heads():
            output: DecoderOutput = self._run_decoder(
                low, features, points, hint, multimask, True, raw=True
            )
            return object_heads(
                output.logits.float(),
                output.iou,
                output.tokens,
                self._object_heads.get(self._head_modules, self._gather_heads),
                self.no_obj_ptr,
                2 + output.first,
                multimask,
                options.dynamic_multimask_stability_delta,
                options.dynamic_multimask_stability_thresh,
                NO_OBJECT_LOGIT,
            )
        prediction = self.decode(low, features, points, hint, multimask, best=True)
        present = prediction.presence > 0
        logits = torch.where(present[:, None, None], prediction.logits, NO_OBJECT_LOGIT)
        pointer = self.obj_ptr_proj(prediction.tokens[:, 0])
        return logits, mix_absent(pointer, present, self.no_obj_ptr), prediction.presence

    def _head_modules(self) -> list[nn.Module]:
        heads = self.sam_mask_decoder.pred_obj_score_head, self.obj_ptr_proj
        return [module for head in heads for module in head.modules()]

    def _gather_heads(self) -> ObjectHeadsWeights:
        return ObjectHeadsWeights(
            mlp_of(self.sam_mask_decoder.pred_obj_score_head), mlp_of(self.obj_ptr_proj)
        )

    def _plain_heads(self) -> bool:
        """Whether `object_heads` may read the weights of both heads instead of calling them."""
        head = self.sam_mask_decoder.pred_obj_score_head
        return untouched_mlp(head) and untouched_mlp(self.obj_ptr_proj)

    @respects_prove
    def point_to(self, features: Features, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of +-10, pointer and presence, as from `track`, of masks that a user drew.

        mask: [B, 1, S, S] of 0 and 1. Source: official `_use_mask_as_output`.
        """
        batch = mask.shape[0]
        logits = F.interpolate(
            mask * 20.0 - 10.0,
            scale_factor=0.25,
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        _, pointer, _ = self.track(
            features.low,
            features,
            NoPoints(batch),
            self.mask_downsample(self._enter(mask)),
            multimask=False,
        )
        present = mask.flatten(1).any(1, keepdim=True)
        presence = present.to(logits.dtype) * 20.0 - 10.0
        return logits, mix_absent(pointer, present, self.no_obj_ptr), presence

    @respects_prove
    def encode_memory(
        self, low: Tensor, logits: Tensor, presence: Tensor, binarize: bool
    ) -> Tensor:
        """Memory maps of B objects on one frame: [B, h * w, 64].

        low: [1 or B, 256, h, w], before fusion. logits: [B, 1, ., .]. presence: [B, 1] logit.
        binarize: threshold the mask, as the user saw it, instead of computing its sigmoid.
        Source: official `_encode_new_memory`.
        """
        memory = self.memory_encoder(low, logits, binarize)
        if self.config.version == "2.1":
            absent = (presence <= 0).to(memory.dtype)[:, None]  # [B, 1, 1]
            memory = torch.addcmul(memory, absent, self.no_obj_embed_spatial.to(memory.dtype))
        return memory
