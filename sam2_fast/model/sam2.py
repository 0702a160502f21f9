"""SAM 2 as one module of five parts. It has no state between calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import accumulate, chain
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.config import IMAGE_POSTPROCESSING, NO_OBJECT_LOGIT, Options, Sam2Config
from sam2_fast.model import composed
from sam2_fast.model.folding import FoldedProjections
from sam2_fast.model.image_encoder import ImageEncoder
from sam2_fast.model.layers import MLP, WithTables, to_map, to_tokens
from sam2_fast.model.mask_decoder import MaskDecoder
from sam2_fast.model.memory_attention import MemoryAttention
from sam2_fast.model.memory_encoder import MemoryEncoder
from sam2_fast.model.model_parts import ModelOfParts, Parts
from sam2_fast.model.object_pointer import split_pointers
from sam2_fast.model.position import get_1d_sine_pe, sine_tokens
from sam2_fast.model.prompt_encoder import PromptEncoder
from sam2_fast.model.prompted_decoder import FusedHeads, best_of, decode_by_op, run_heads
from sam2_fast.model.proofs import respects_prove
from sam2_fast.ops.core.cache import Cache
from sam2_fast.ops.core.transfer import upload_numbers
from sam2_fast.ops.memory_attention import Memories, MemoryAttentionWeights
from sam2_fast.ops.memory_attention.table import MemoryTable
from sam2_fast.ops.memory_encoder import MASK_SCALE
from sam2_fast.ops.object_heads import mix_absent
from sam2_fast.types import Features, NoPoints, Points, Prediction, RecallLimits


class Sam2(ModelOfParts, WithTables):
    """Image encoder, memory attention, prompt encoder, mask decoder and memory encoder.

    The state dict is the official one. S = `config.image_size` pixels, h = w = S / 16 tokens. The
    model computes in the dtype of its weights, or in the caller's autocast dtype.
    """

    prove: bool = True
    """Whether kernels on a GPU must be proved before this model runs them; see docs/proving.md."""
    strict_prompts: bool = False
    """Whether points and boxes outside the image are refused, instead of a warning."""
    postprocessing: ClassVar[Mapping[str, Any]] = IMAGE_POSTPROCESSING
    """Options that the builders set if `apply_postprocessing` is True."""

    def __init__(
        self, config: Sam2Config, options: Options | None = None, parts: Parts | None = None
    ) -> None:
        """parts: in `config`'s architecture; None: they are built, with random weights."""
        super().__init__()
        self.config = config
        self._options = replace(options or Options())  # a copy, which the mask decoder shares
        self._num_maskmem = config.num_maps
        dim = config.hidden_dim
        memory_dim = config.memory_dim
        side = config.grid
        self.image_encoder = parts.image_encoder if parts else ImageEncoder.from_config(config)
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        parts = parts or Parts.from_config(config, self.image_encoder)
        self.memory_attention = parts.memory_attention
        self.memory_encoder = parts.memory_encoder
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(config.num_maps, 1, 1, memory_dim))
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, dim))
        # Part of the checkpoints, but no released model reads it.
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, dim))
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, dim))
        self.sam_prompt_encoder = PromptEncoder.from_config(config)
        self.sam_mask_decoder = MaskDecoder.from_config(config, self._options)
        self.obj_ptr_proj = MLP(dim, dim, dim, 3)
        if config.version == "2.1":
            self.no_obj_embed_spatial: Tensor | None = nn.Parameter(torch.zeros(1, memory_dim))
            self.obj_ptr_tpos_proj: nn.Module = nn.Linear(dim, memory_dim)
        else:
            self.no_obj_embed_spatial = None
            self.obj_ptr_tpos_proj = nn.Identity()
        for parameter in (
            self.maskmem_tpos_enc,
            self.no_mem_embed,
            self.no_mem_pos_enc,
            self.no_obj_ptr,
        ):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.image_position: Tensor  # [h * w, 256]
        self.memory_position: Tensor  # [h * w, 64]
        self.add_table("image_position", partial(sine_tokens, dim, side))
        self.add_table("memory_position", partial(sine_tokens, memory_dim, side))
        self._tables: Cache[list[Tensor]] = Cache()
        self._map_position: Cache[Tensor] = Cache()
        self._folding = FoldedProjections(self.image_encoder, self.sam_mask_decoder)
        self._heads = FusedHeads(self.sam_mask_decoder, self.obj_ptr_proj)
        self._remember_parts()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Sam2:
        self._folding.clear()
        self._heads.clear()
        self._tables.clear()
        self._map_position.clear()
        super()._apply(fn, recurse)
        return self

    @property
    def options(self) -> Options:
        """The inference options, which the mask decoder shares; assigning copies them."""
        return self._options

    @options.setter
    def options(self, value: Options) -> None:
        for option in fields(Options):
            setattr(self._options, option.name, getattr(value, option.name))

    @property
    def num_maskmem(self) -> int:
        """How many temporal positions of memory maps are used, 0 (no memory at all) to 7.

        A frame attends to the prompted frames and to the `num_maskmem - 1` frames before it.
        """
        return self._num_maskmem

    @num_maskmem.setter
    def num_maskmem(self, value: int) -> None:
        if not 0 <= value <= self.config.num_maps:
            raise ValueError(
                f"num_maskmem: expected 0 to {self.config.num_maps}, the temporal positions in "
                f"the weights, got {value}"
            )
        self._num_maskmem = value

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
        """Limits on the memories that a frame attends to, for `MemoryBank.recall`.

        In training mode they are those of the official training: every frame, and the pointers of
        all prompted frames.
        """
        options = self.options
        return RecallLimits(
            self.num_maskmem,
            options.max_obj_ptrs_in_encoder,
            1 if self.training else options.memory_temporal_stride_for_eval,
            options.max_cond_frames_in_attn,
            options.only_obj_ptrs_in_the_past_for_eval and not self.training,
            options.use_obj_ptrs_in_encoder,
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

    def in_weights_dtype(self, x: Tensor) -> Tensor:
        """x in the dtype of the weights; under autocast, x itself."""
        return x if torch.is_autocast_enabled(x.device.type) else x.to(self.dtype)

    @respects_prove
    def encode_image(self, images: Tensor) -> Features:
        """images: [B, 3, S, S], normalised -> features of B images.

        The decoder's projections of the fine levels are already applied.
        """
        images = self.in_weights_dtype(images)
        features = self._features_by_op(images)
        return composed.encode_image(self, images) if features is None else features

    def _features_by_op(self, images: Tensor) -> Features | None:
        """`encode_image` with folded convolutions, or None if neck or decoder must be called.

        images: in the dtype of the weights, except under autocast.
        """
        return self._folding.run(self.image_encoder, self.sam_mask_decoder, images)

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
        weights = self._attention_weights(low)
        if weights is None:
            return composed.attend(self, low, maps, rows, pointers, ages, longest)
        dtype = low.dtype
        memory_dim = self.config.memory_dim
        flat_maps = list(chain.from_iterable(maps))
        flat_ages = upload_numbers(list(chain.from_iterable(ages)), torch.float32, low.device)
        memories = Memories(
            flat_maps,
            list(range(len(flat_maps))),
            list(chain.from_iterable(rows)),
            [0, *accumulate(map(len, maps))],
            split_pointers(torch.cat(list(pointers)).to(dtype)[None], memory_dim)[0],
            self.pointer_positions(flat_ages, longest).to(dtype),
            [0, *accumulate(self.config.tokens_per_pointer * len(own) for own in pointers)],
        )
        return self._attend_by_op(low, memories, weights)

    def pointer_positions(self, ages: Tensor, longest: int) -> Tensor:
        """ages: [P] frames -> [P * 4, 64]: added to the keys of each pointer's four tokens.

        They are zeros for models of version 2.0.
        """
        memory_dim = self.config.memory_dim
        if self.config.version == "2.0":
            return ages.new_zeros(len(ages) * self.config.tokens_per_pointer, memory_dim)
        sine = get_1d_sine_pe(ages / longest, dim=self.config.hidden_dim)
        position: Tensor = self.obj_ptr_tpos_proj(self.in_weights_dtype(sine))
        return position.repeat_interleave(self.config.tokens_per_pointer, dim=0)

    def _memory_map_position(self, dtype: torch.dtype) -> Tensor:
        """Positions of a memory map, [1, 64, h, w]; the same memory for the same dtype."""
        side = self.config.grid
        table = self.memory_position
        make = partial(to_map, table[None].to(dtype), side, side)
        return self._map_position.get(make, [table], dtype)

    @respects_prove
    def attend_at(self, low: Tensor, memories: Memories | MemoryTable) -> Tensor:
        """`attend` for arguments of the op: low [1 or B, 256, h, w] -> [B, 256, h, w].

        Raises RuntimeError if the op cannot compute memory attention, because a part of it has
        been changed; `attend` always can.
        """
        weights = self._attention_weights(low)
        if weights is None:
            raise RuntimeError(
                "attend_at: a part of memory_attention has been changed or is observed; use attend"
            )
        return self._attend_by_op(low, memories, weights)

    def _attention_weights(self, low: Tensor) -> MemoryAttentionWeights | None:
        attention = self.memory_attention
        return attention.op_weights(low) if type(attention) is MemoryAttention else None

    def _attend_by_op(
        self, low: Tensor, memories: Memories | MemoryTable, weights: MemoryAttentionWeights
    ) -> Tensor:
        side = self.config.grid
        dtype = low.dtype
        constants = self.maskmem_tpos_enc[:, 0, 0], self.memory_position, self.image_position
        parameters = [self.maskmem_tpos_enc, *constants[1:]]
        temporal, memory_position, position = self._tables.get(
            lambda: [x.to(dtype) for x in constants], parameters, dtype
        )
        fused = self.memory_attention.run_op(
            to_tokens(low), weights, position[None], memories, temporal, memory_position
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
        low = self.in_weights_dtype(low)
        output = decode_by_op(self, low, features, points, hint, multimask, best)
        if output is not None:
            prediction = self.sam_mask_decoder.select(output, multimask, best)
        else:
            prediction = composed.decode(self, low, features, points, hint, multimask)
            prediction = best_of(prediction) if best else prediction
        return prediction._replace(logits=prediction.logits.float())

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
        decoder = self.sam_mask_decoder
        if type(self).decode is Sam2.decode and "decode" not in vars(self):
            heads = self._heads.weights(decoder, self.obj_ptr_proj, low)
            if heads is not None:
                low = self.in_weights_dtype(low)
                output = decode_by_op(self, low, features, points, hint, multimask, best=True)
                if output is not None:
                    return run_heads(output, heads, self.no_obj_ptr, multimask, decoder.options)
        prediction = self.decode(low, features, points, hint, multimask, best=True)
        present = prediction.presence > 0
        logits = torch.where(present[:, None, None], prediction.logits, NO_OBJECT_LOGIT)
        pointer = self.obj_ptr_proj(prediction.tokens[:, 0])
        return logits, mix_absent(pointer, present, self.no_obj_ptr), prediction.presence

    @respects_prove
    def point_to(self, features: Features, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of +-10, pointer and presence, as from `track`, of masks that a user drew.

        mask: [B, 1, S, S], 1 on the object and 0 elsewhere, or soft.
        Source: official `_use_mask_as_output`.
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
            self.mask_downsample(self.in_weights_dtype(mask)),
            multimask=False,
        )
        present = (mask > 0).flatten(1).any(1, keepdim=True)
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
        return self._encode_memory(low, logits, presence, binarize)[0]

    def _encode_memory(
        self, low: Tensor, logits: Tensor, presence: Tensor, binarize: bool
    ) -> tuple[Tensor, Tensor | None]:
        """`encode_memory`, and the positions of the maps, [B or 1, 64, h, w].

        The positions are None if they are those of `_memory_map_position`.
        """
        encoder = self.memory_encoder
        weights = position = None
        if type(encoder) is MemoryEncoder and self.options.memory_mask_scale == MASK_SCALE:
            weights = encoder.op_weights(low, logits)
        if weights is None:
            memory, position = composed.encode_memory(self, low, logits, binarize)
        else:
            memory = encoder.run_op(low, logits, weights, binarize)
        if self.no_obj_embed_spatial is not None:
            absent = (presence <= 0).to(memory.dtype)[:, None]  # [B, 1, 1]
            memory = torch.addcmul(memory, absent, self.no_obj_embed_spatial.to(memory.dtype))
        return memory, position
