"""The steps of the model as calls of its parts, with the arguments of the official package.

They run if a part has been changed or is observed, so that an op must not stand in for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.model.layers import to_map, to_tokens
from sam2_fast.model.object_pointer import split_pointers
from sam2_fast.model.prompt_encoder import padding_points
from sam2_fast.ops.core.transfer import upload_numbers
from sam2_fast.types import Features, NoPoints, Points, Prediction

if TYPE_CHECKING:
    from sam2_fast.model.sam2 import Sam2


def forward_image(model: Sam2, images: Tensor) -> dict[str, Any]:
    """The results of the image encoder, with the fine levels projected for the decoder.

    Source: official `forward_image`.
    """
    backbone_out: dict[str, Any] = model.image_encoder(images)
    levels, decoder = backbone_out["backbone_fpn"], cast(Any, model.sam_mask_decoder)
    levels[0] = decoder.conv_s0(levels[0])
    levels[1] = decoder.conv_s1(levels[1])
    return backbone_out


def encode_image(model: Sam2, images: Tensor) -> Features:
    """`Sam2.encode_image`."""
    high, mid, low = forward_image(model, images)["backbone_fpn"]
    return Features(low, mid, high)


def attend(
    model: Sam2,
    low: Tensor,
    maps: Sequence[Sequence[Tensor]],
    rows: Sequence[Sequence[int]],
    pointers: Sequence[Tensor],
    ages: Sequence[Sequence[float]],
    longest: int,
) -> Tensor:
    """`Sam2.attend`; objects with equal temporal rows and ages go through the layers together."""
    groups: dict[tuple[tuple[int, ...], tuple[float, ...]], list[int]] = defaultdict(list)
    for i, own in enumerate(zip(rows, ages, strict=True)):
        groups[tuple(own[0]), tuple(own[1])].append(i)
    position = model.image_position[:, None].to(low.dtype)
    map_position = model.memory_position[None]
    fused: list[Tensor | None] = [None] * len(maps)
    for (own_rows, own_ages), members in groups.items():
        features = low if len(low) == 1 else low[members]
        tokens = to_tokens(features).transpose(0, 1).expand(-1, len(members), -1)
        output = attend_with_positions(
            model,
            tokens,
            position.expand(-1, len(members), -1),
            [torch.stack([maps[i][k] for i in members]) for k in range(len(own_rows))],
            [map_position] * len(own_rows),
            own_rows,
            [torch.stack([pointers[i][k] for i in members]) for k in range(len(own_ages))],
            own_ages,
            longest,
        )
        output = to_map(output.transpose(0, 1), *low.shape[-2:])
        for i, row in zip(members, output, strict=True):
            fused[i] = row
    return torch.stack([row for row in fused if row is not None])


def attend_with_positions(
    model: Sam2,
    features: Tensor,
    position: Tensor,
    maps: Sequence[Tensor],
    map_positions: Sequence[Tensor],
    rows: Sequence[int],
    pointers: Sequence[Tensor],
    ages: Sequence[float],
    longest: int,
) -> Tensor:
    """Features fused with memories at any positions, [N, B, 256].

    features, position: [N, B, 256]. maps, map_positions: [B or 1, N, 64] each. pointers:
    [B, 256] each.
    """
    dtype, batch = features.dtype, features.shape[1]
    tokens = [m.transpose(0, 1).to(dtype) for m in maps]
    temporal = model.maskmem_tpos_enc.to(dtype)
    positions = [
        p.transpose(0, 1).to(dtype) + temporal[row]
        for p, row in zip(map_positions, rows, strict=True)
    ]
    if pointers:
        split = split_pointers(torch.stack([*pointers], 1).to(dtype), model.config.memory_dim)
        tokens.append(split.transpose(0, 1))
        own_ages = upload_numbers([*ages], torch.float32, features.device)
        own = model.pointer_positions(own_ages, longest).to(dtype)
        positions.append(own[:, None].expand(-1, batch, -1))
    fused: Tensor = model.memory_attention(
        curr=[features],
        curr_pos=[position],
        memory=torch.cat(tokens),
        memory_pos=torch.cat([p.expand(-1, batch, -1) for p in positions]),
        num_obj_ptr_tokens=len(pointers) * model.config.tokens_per_pointer,
    )
    return fused


def decode(
    model: Sam2,
    low: Tensor,
    features: Features,
    points: Points | NoPoints | None,
    hint: Tensor | None,
    multimask: bool,
) -> Prediction:
    """`Sam2.decode`; prompts with equal numbers of points are decoded together."""
    if isinstance(points, NoPoints):
        points = padding_points(points.objects, low.device)
    if points is None or points.present is None:
        return _decode_batch(model, low, features, points, hint, multimask)
    counts = points.present.sum(1).tolist()
    outputs: list[tuple[Tensor, ...] | None] = [None] * len(counts)
    for length in sorted(set(counts)):
        members = [i for i, count in enumerate(counts) if count == length]
        batch = Points(points.coords[members, :length], points.labels[members, :length])
        own_features = Features(*(_rows(level, members) for level in features))
        own_hint = None if hint is None else _rows(hint, members)
        prediction = _decode_batch(
            model, _rows(low, members), own_features, batch, own_hint, multimask
        )
        for i, row in zip(members, zip(*prediction, strict=True), strict=True):
            outputs[i] = row
    rows = [row for row in outputs if row is not None]
    return Prediction(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _rows(x: Tensor, members: list[int]) -> Tensor:
    return x if len(x) == 1 else x[members]


def _decode_batch(
    model: Sam2,
    low: Tensor,
    features: Features,
    points: Points | None,
    hint: Tensor | None,
    multimask: bool,
) -> Prediction:
    encoder: Any = model.sam_prompt_encoder
    sparse, dense = encoder(
        points=None if points is None else (points.coords, points.labels),
        boxes=None,
        masks=None if hint is None else model.in_weights_dtype(hint),
    )
    masks, iou, tokens, presence = model.sam_mask_decoder(
        image_embeddings=low,
        image_pe=model.in_weights_dtype(encoder.get_dense_pe()),
        sparse_prompt_embeddings=model.in_weights_dtype(sparse),
        dense_prompt_embeddings=model.in_weights_dtype(dense),
        multimask_output=multimask,
        repeat_image=len(low) == 1 and len(sparse) > 1,
        high_res_features=[features.high, features.mid],
    )
    return Prediction(masks, iou, tokens, presence)


def encode_memory(
    model: Sam2, low: Tensor, logits: Tensor, binarize: bool
) -> tuple[Tensor, Tensor]:
    """The memory maps of `Sam2.encode_memory` before those of absent objects are marked.

    Also returns their positions, [B, 64, h, w].
    """
    size = model.config.image_size
    masks = logits
    if tuple(masks.shape[-2:]) != (size, size):
        masks = F.interpolate(
            masks.float(), size=(size, size), mode="bilinear", align_corners=False
        )
    masks = (masks > 0).float() if binarize else masks.sigmoid()
    scale, bias = model.options.memory_mask_scale
    masks = masks * scale + bias
    output = model.memory_encoder(low, model.in_weights_dtype(masks), skip_mask_sigmoid=True)
    return to_tokens(output["vision_features"]), output["vision_pos_enc"][-1]
