"""`sam2._C`: the official extension's only function, on every device."""  # noqa: N999

from torch import Tensor

from sam2_fast.ops.connected_components import connected_components


def get_connected_componnets(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """inputs: [N, 1, H, W] uint8 -> labels and areas, int32 of the same shape."""
    return connected_components(inputs)
