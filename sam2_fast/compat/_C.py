"""`sam2._C`: the official extension's only function, on every device."""  # noqa: N999

from torch import Tensor

from sam2_fast.ops.connected_components import connected_components


def get_connected_componnets(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and areas of connected components, int32. inputs: [N, 1, H, W] uint8."""
    return connected_components(inputs)
