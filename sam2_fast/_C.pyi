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
def hiera_block(
    x: Tensor,
    weights: list[Tensor],
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
    weights: list[Tensor],
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
    weights: list[Tensor],
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
    weights: list[Tensor],
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
