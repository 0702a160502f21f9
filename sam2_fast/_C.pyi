"""Native kernels; private. Public functions are in `sam2_fast.ops`."""

from typing import Any

from torch import Tensor

__version__: str
openmp: bool
max_local_area: int

def cuda_architectures() -> list[str]: ...
def cpu_isa() -> str: ...
def same_members(groups: list[dict[str, Any]], names: list[str], values: list[Any]) -> bool: ...
def same_tensors(address: Any, version: Any, tensors: list[Tensor], addresses: list[int], versions: list[int | None]) -> bool: ...
def all_empty(dictionaries: list[Any]) -> bool: ...
def connected_components(masks: Tensor, labels: Tensor, areas: Tensor, num_threads: int) -> None: ...
def small_components(masks: Tensor, small: Tensor, max_area: int, num_threads: int) -> None: ...
def rope_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, out: Tensor, unrotated: int, num_threads: int, isa: str) -> None: ...

class HieraBlockWeights:
    """Of an object with norm1 [C], qkv [3 D, C], proj [D, D], norm2 [D], fc1 [F, D], fc2 [D, F] and shortcut [D, C] or None, each with
    weight and bias. Matrices are of one dtype, vectors float32; ValueError names the field that does not fit. Here as below the
    tensors are held: numbers that are written to them later count, other tensors that take their names do not."""

    def __init__(self, weights: Any) -> None: ...
    @property
    def dim(self) -> int: ...
    @property
    def dim_out(self) -> int: ...
    @property
    def hidden(self) -> int: ...

class MemoryAttentionWeights:
    """Of an object with layers, a sequence, and norm [C]. A layer: norm1, norm2, norm3 [C]; self_q, self_k, self_v, self_out, q, out
    [C, C]; k, v [C, M]; linear1 [F, C], linear2 [C, F], each with weight and bias."""

    def __init__(self, weights: Any) -> None: ...
    @property
    def dim(self) -> int: ...
    @property
    def memory_dim(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def num_layers(self) -> int: ...

class MemoryEncoderWeights:
    """Of an object with convolutions, four of weight [C_i, 9 C_(i-1)] with columns by place, then channel, bias and norm, the first two
    weights float32; mask_proj [C, C_4], low_proj [C, C], out_proj [M, C]; blocks, a sequence of depthwise [C, 49] in float32, norm [C],
    fc1 [F, C], fc2 [C, F] and the tensor gamma [C]."""

    def __init__(self, weights: Any) -> None: ...
    @property
    def dim(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def memory_dim(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...

class MaskDecoderWeights:
    """Of an object with layers, two of self_attention, norm1, token_to_image, norm2, fc1 [F, C], fc2 [C, F], norm3, norm4 and
    image_to_token; final_attention and final_norm; up1 [C, C], up_norm [C / 4] and up2 [C / 2, C / 4], rows by place, then channel, with
    biases [C / 4] and [C / 8]; iou, linear1 [H, C], linear2 [H, H], linear3 [K, H]; masks, a sequence of the same to [C / 8]. An attention:
    q, k, v [I, C] and out [C, I], I = C in self_attention, else C / 2."""

    def __init__(self, weights: Any) -> None: ...
    @property
    def dim(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def iou_hidden(self) -> int: ...
    @property
    def iou_values(self) -> int: ...
    @property
    def num_masks(self) -> int: ...

def hiera_block(
    x: Tensor,
    weights: HieraBlockWeights,
    out: Tensor,
    heads: int,
    window: int,
    pool: bool,
    epsilon: float,
    num_threads: int,
    isa: str,
) -> None: ...
def memory_attention(
    x: Tensor,
    weights: MemoryAttentionWeights,
    table: Tensor,
    maps: list[Tensor],
    temporal: Tensor,
    place: Tensor,
    slots: list[int],
    rows: list[int],
    first: list[int],
    pointers: Tensor,
    pointer_positions: Tensor,
    first_pointer: list[int],
    out: Tensor,
    num_threads: int,
    isa: str,
) -> None: ...
def memory_encoder(
    low: Tensor,
    logits: Tensor,
    weights: MemoryEncoderWeights,
    out: Tensor,
    binarize: bool,
    epsilon: float,
    num_threads: int,
    isa: str,
) -> None: ...
def mask_decoder(
    image: Tensor,
    mid: Tensor,
    high: Tensor,
    position: Tensor,
    prompts: Tensor,
    present: Tensor | None,
    weights: MaskDecoderWeights,
    heads: int,
    first_mask_token: int,
    iou_token: int,
    best: bool,
    logits: Tensor,
    tokens: Tensor,
    quality: Tensor,
    num_threads: int,
    isa: str,
) -> None: ...
def mask_postprocess(
    logits: Tensor,
    height: int,
    width: int,
    canvas_height: int,
    canvas_width: int,
    top: int,
    left: int,
    low: float,
    middle: float,
    high: float,
    outer: Tensor,
    inner: Tensor,
    boxes: Tensor,
    num_threads: int,
    isa: str,
) -> list[bytes]: ...
def preprocess(
    pictures: Tensor,
    bicubic: bool,
    columns_first: bool,
    mean: list[float],
    std: list[float],
    out: Tensor,
    num_threads: int,
    isa: str,
) -> None: ...
def window_attention(qkv: Tensor, pad: Tensor, out: Tensor, heads: int, window: int, pool: bool, num_threads: int, isa: str) -> None: ...
