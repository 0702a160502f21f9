"""SAM 2 as five parts and five verbs. It computes and never remembers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
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
from sam2_fast.model.mask_decoder import Decoded, MaskDecoder
from sam2_fast.model.memory_attention import MemoryAttention
from sam2_fast.model.memory_encoder import MemoryEncoder
from sam2_fast.model.object_pointer import age_position, split_pointers
from sam2_fast.model.position import RandomPosition, sine_tokens
from sam2_fast.model.prompt_encoder import PromptEncoder, padding_points
from sam2_fast.model.proofs import as_asked
from sam2_fast.ops.core.cache import Cache, WeightsCache
from sam2_fast.ops.core.transfer import upload_numbers
from sam2_fast.ops.memory_attention import Memories
from sam2_fast.ops.memory_attention.table import MemoryTable
from sam2_fast.ops.object_heads import ObjectHeadsWeights, mix_absent, object_heads
from sam2_fast.types import Features, NoPoints, Points, Prediction, RecallLimits


class Sam2(nn.Module):
    """Image encoder, memory attention, prompt encoder, mask decoder, memory encoder. Its state dict
    is the official one.

    S = `config.image_size` pixels, h = w = S / 16 tokens. Runs in the dtype of its weights, or in
    the caller's autocast dtype.
    """

    prove: bool = True
    """Whether kernels on a GPU must prove themselves before this model runs them; see
    docs/proving.md.
    """
    postprocessing: ClassVar[Mapping[str, Any]] = IMAGE_POSTPROCESSING
    """Options that builders set under `apply_postprocessing=True`."""

    def __init__(self, config: Sam2Config, options: Options | None = None) -> None:
        super().__init__()
        self.config = config
        self.options = options or Options()
        dim, memory_dim, side = config.hidden_dim, config.memory_dim, config.grid
        self.image_encoder = ImageEncoder(config)
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.memory_attention = MemoryAttention(config)
        self.memory_encoder = MemoryEncoder(config)
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(config.num_maps, 1, 1, memory_dim))
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, dim))
        # In the checkpoints, read by no released model.
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
        """Where the weights are."""
        return self.no_mem_embed.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in."""
        return self.no_mem_embed.dtype

    @property
    def recall_limits(self) -> RecallLimits:
        """How much a frame may attend to, for `MemoryBank.recall`."""
        options = self.options
        return RecallLimits(
            self.config.num_maps,
            options.max_obj_ptrs_in_encoder,
            options.memory_temporal_stride_for_eval,
            options.max_cond_frames_in_attn,
        )

    def __repr__(self) -> str:
        """One line; `torch.nn.Module.__repr__(model)` draws the tree of modules."""
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
        """To the weights' dtype, unless the caller's autocast decides."""
        return x if torch.is_autocast_enabled(x.device.type) else x.to(self.dtype)

    @as_asked
    def encode_image(self, images: Tensor) -> Features:
        """images: [B, 3, S, S] normalised -> features of each. The decoder's projections of the
        fine levels are applied once, here, in one product with the pyramid's."""
        neck, decoder = self.image_encoder.neck, self.sam_mask_decoder
        maps = self.image_encoder.trunk(self._enter(images))
        return Features(neck.low(maps), *neck.folded(maps, decoder.conv_s1, decoder.conv_s0))

    def without_memory(self, low: Tensor) -> Tensor:
        """low: [B, 256, h, w] -> the same shape: what a frame that has no past is decoded from."""
        return low + self.no_mem_embed.view(1, -1, 1, 1)

    @as_asked
    def attend(
        self,
        low: Tensor,
        maps: Sequence[Sequence[Tensor]],
        rows: Sequence[Sequence[int]],
        pointers: Sequence[Tensor],
        ages: Sequence[Sequence[float]],
        longest: int,
    ) -> Tensor:
        """Fuse a frame with what B objects remember; they may remember differently much, but at
        least a map or a pointer each.

        low: [1 or B, 256, h, w]; then for each object: maps [h * w, 64] and their rows of the
        temporal table; pointers [P, 256] and their ages in frames; longest: the age that is scaled
        to 1. Returns [B, 256, h, w].
        Source: official `_prepare_memory_conditioned_features`.
        """
        dtype, memory_dim = low.dtype, self.config.memory_dim
        split = self.config.hidden_dim // memory_dim
        flat = upload_numbers([age for mine in ages for age in mine], torch.float32, low.device)
        memories = Memories(
            [m for mine in maps for m in mine],
            list(range(sum(len(mine) for mine in maps))),
            [row for mine in rows for row in mine],
            [0, *accumulate(len(mine) for mine in maps)],
            split_pointers(torch.cat(list(pointers)).to(dtype)[None], memory_dim)[0],
            self.pointer_positions(flat, longest).to(dtype),
            [0, *accumulate(split * len(mine) for mine in pointers)],
        )
        return self.attend_at(low, memories)

    def pointer_positions(self, ages: Tensor, longest: int) -> Tensor:
        """ages: [P] frames -> [P * 4, 64]: what is added to each pointer's four tokens for their
        keys.
        """
        project = getattr(self, "obj_ptr_tpos_proj", None)
        when = age_position(
            ages[None], longest, project, self.config.hidden_dim, self.config.memory_dim
        )[0]
        return when.repeat_interleave(self.config.hidden_dim // self.config.memory_dim, dim=0)

    @as_asked
    def attend_at(self, low: Tensor, memories: Memories | MemoryTable) -> Tensor:
        """`attend`, for memories that lie together already. low: [1 or B, 256, h, w] -> [B, 256, h,
        w].
        """
        side, dtype = self.config.grid, low.dtype
        constants = self.maskmem_tpos_enc[:, 0, 0], self._memory_position(), self._image_position()
        parameters = [self.maskmem_tpos_enc, *constants[1:]]
        temporal, place, position = self._tables.get(
            lambda: [x.to(dtype) for x in constants], parameters, dtype
        )
        fused = self.memory_attention(to_tokens(low), position[None], memories, temporal, place)
        return to_map(fused, side, side)

    @as_asked
    def decode(
        self,
        low: Tensor,
        features: Features,
        points: Points | NoPoints | None,
        hint: Tensor | None,
        multimask: bool,
        best: bool = False,
    ) -> Prediction:
        """Masks of B prompts. low: [1 or B, 256, h, w] fused features; hint: [B, 1, 4h, 4w] logits
        of an earlier mask, or None.

        points None: the hint alone, without even a padding point (as `SAM2ImagePredictor` has it
            upstream).
        best: of three masks only that of highest predicted IoU is drawn.
        """
        found: Prediction = self._run_decoder(
            low, features, points, hint, multimask, best, undecided=False
        )
        return found._replace(logits=found.logits.float())

    def _run_decoder(
        self,
        low: Tensor,
        features: Features,
        points: Points | NoPoints | None,
        hint: Tensor | None,
        multimask: bool,
        best: bool,
        undecided: bool,
    ) -> Any:
        """What the mask decoder says of embedded prompts: `Prediction`, or `Decoded` if
        `undecided`.
        """
        low, present, encoder = self._enter(low), None, self.sam_prompt_encoder
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
            if points.present is not None:  # the padding point that closes the list always counts
                present = torch.cat(
                    [points.present, points.present.new_ones(points.present.shape[0], 1)], dim=1
                )
        # kernels for a CPU take the widest
        if plain and low.is_cuda:
            position = encoder.get_dense_pe(low.dtype)
        else:  # kernels for a CPU take the widest
            position = encoder.get_dense_pe()
        maps = features.high, features.mid
        inputs = low, position, sparse, dense, *maps, multimask, self.options, present, best
        if undecided:
            return self.sam_mask_decoder(*inputs, undecided)
        return self.sam_mask_decoder(*inputs)  # a replaced decoder need not know `undecided`

    @as_asked
    def track(
        self,
        low: Tensor,
        features: Features,
        points: Points | NoPoints,
        hint: Tensor | None,
        multimask: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`decode`, then the best mask, its pointer and the object's presence: [B, 1, 4h, 4w], [B,
        256], [B, 1].

        Masks of absent objects are -1024 throughout. Source: official `_forward_sam_heads`.
        """
        decoder, options = self.sam_mask_decoder, self.options
        own_decode = type(self).decode is Sam2.decode and "decode" not in vars(self)
        if own_decode and untouched(decoder, MaskDecoder) and self._heads_are_untouched():
            whole: Decoded = self._run_decoder(
                low, features, points, hint, multimask, True, undecided=True
            )
            weights = self._object_heads.get(self._head_modules, self._gather_heads)
            stable = (
                options.dynamic_multimask_stability_delta,
                options.dynamic_multimask_stability_thresh,
            )
            return object_heads(
                whole.logits.float(),
                whole.iou,
                whole.tokens,
                weights,
                self.no_obj_ptr,
                2 + whole.first,
                multimask,
                *stable,
                NO_OBJECT_LOGIT,
            )
        found = self.decode(low, features, points, hint, multimask, best=True)
        present = found.presence > 0
        logits = torch.where(present[:, None, None], found.logits, NO_OBJECT_LOGIT)
        return (
            logits,
            mix_absent(self.obj_ptr_proj(found.tokens[:, 0]), present, self.no_obj_ptr),
            found.presence,
        )

    def _head_modules(self) -> list[nn.Module]:
        heads = self.sam_mask_decoder.pred_obj_score_head, self.obj_ptr_proj
        return [module for head in heads for module in head.modules()]

    def _gather_heads(self) -> ObjectHeadsWeights:
        return ObjectHeadsWeights(
            mlp_of(self.sam_mask_decoder.pred_obj_score_head), mlp_of(self.obj_ptr_proj)
        )

    def _heads_are_untouched(self) -> bool:
        """Whether `object_heads` may read the weights of both heads in place of calling them."""
        head = self.sam_mask_decoder.pred_obj_score_head
        return untouched_mlp(head) and untouched_mlp(self.obj_ptr_proj)

    @as_asked
    def point_to(self, features: Features, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take masks that the user drew: [B, 1, S, S] of 0 and 1 -> logits of +-10, pointer,
        presence, as `track` returns them.

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
            self.mask_downsample(self._enter(mask)),
            multimask=False,
        )
        present = mask.flatten(1).any(1, keepdim=True)
        return (
            logits,
            mix_absent(pointer, present, self.no_obj_ptr),
            present.to(logits.dtype) * 20.0 - 10.0,
        )

    @as_asked
    def encode_memory(
        self, low: Tensor, logits: Tensor, presence: Tensor, binarize: bool
    ) -> Tensor:
        """Memory maps of B objects on one frame: [B, h * w, 64].

        low: [1 or B, 256, h, w] features before fusion; logits: [B, 1, ., .] of any size; presence:
            [B, 1] logit;
        binarize: threshold the mask (what a user saw and accepted) instead of its sigmoid. Source:
            official `_encode_new_memory`.
        """
        memory = self.memory_encoder(low, logits, binarize)
        if self.config.version == "2.1":
            absent = (presence <= 0).to(memory.dtype)[:, None]  # [B, 1, 1]
            memory = torch.addcmul(memory, absent, self.no_obj_embed_spatial.to(memory.dtype))
        return memory
