"""Which parts of a model must be called instead of computed by ops, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.fusion import Fusion, OpModule
from sam2_fast.model.image_encoder import ImageEncoder
from sam2_fast.model.memory_attention import MemoryAttention
from sam2_fast.model.memory_encoder import MemoryEncoder


@dataclass(frozen=True)
class Parts:
    """The parts that a model may be built from."""

    image_encoder: ImageEncoder
    memory_attention: MemoryAttention
    memory_encoder: MemoryEncoder

    @classmethod
    def from_config(cls, config: Sam2Config, image_encoder: ImageEncoder) -> Parts:
        """An image encoder with the other parts of an architecture, with random weights."""
        attention = MemoryAttention.from_config(config)
        return cls(image_encoder, attention, MemoryEncoder.from_config(config))


class ModelOfParts(nn.Module):
    """A model with an image encoder and other parts, any of which may be changed or observed."""

    def _remember_parts(self) -> None:
        """Call it at the end of the constructor: parts are compared with what they are then."""
        self._encoder_fusion: Fusion[Any] = Fusion(self._encoder_parts())
        self._other_fusion: Fusion[Any] = Fusion(self._other_parts())

    def _encoder_parts(self) -> dict[str, nn.Module]:
        return {"image_encoder": cast(nn.Module, self._modules["image_encoder"])}

    def _other_parts(self) -> dict[str, nn.Module]:
        parts = self._modules.items()
        return {name: m for name, m in parts if m is not None and name != "image_encoder"}

    def encoder_reason_to_call(self) -> str | None:
        """Why parts of the image encoder must be called instead of computed by ops, or None."""
        return self._encoder_fusion.reason(self._encoder_parts())

    def reason_to_call(self) -> str | None:
        """Why parts besides the image encoder must be called, or None; see docs/guides/parts.md."""
        return self._other_fusion.reason(self._other_parts())

    def unfused_parts(self) -> dict[str, str]:
        """Why parts are called instead of computed by an op, by the name of the part."""
        parts = ((n, m) for n, m in self.named_modules() if isinstance(m, OpModule))
        reasons = ((name, part.reason_to_call()) for name, part in parts)
        return {name: reason for name, reason in reasons if reason is not None}
