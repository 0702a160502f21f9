"""Running a model's work for one call of a predictor."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sam2_fast.model import Sam2
from sam2_fast.recording.cache import Graphs
from sam2_fast.recording.fingerprint import Fingerprint
from sam2_fast.types import Features, Remembered, Tracked


class Runner:
    """Runs a model's work for one call of a predictor, from CUDA graphs if possible.

    Whether graphs can be used and whether the weights have changed is determined once, when the
    runner is created.
    """

    def __init__(self, model: Sam2, graphs: Graphs | None) -> None:
        allowed = graphs is not None and graphs.refuses(model, model.no_mem_embed) is None
        self.model = model
        self.graphs = graphs if allowed else None
        """None if tracked frames run without CUDA graphs."""
        encodes = self.graphs is not None and model.encoder_reason_to_call() is None
        self.encoder_graphs = self.graphs if encodes else None
        """None if images are encoded without CUDA graphs, each when it is needed."""
        self._fingerprint = (
            None if self.graphs is None else self.graphs.validate(model, encoder=False)
        )

    def fingerprint(self) -> Fingerprint | None:
        """The model's fingerprint now, compared with its image encoder; None without graphs."""
        return None if self.graphs is None else self.graphs.validate(self.model)

    def encode(self, images: Tensor, fingerprint: Fingerprint | None = None) -> Features:
        """`model.encode_image`.

        images: [B, 3, S, S]. fingerprint: what `fingerprint()` has just returned, or None.
        """
        if self.encoder_graphs is None:
            return self.model.encode_image(images)
        return self.encoder_graphs.encode(self.model, images, fingerprint)

    def track(
        self,
        features: Features,
        remembered: Remembered,
        multimask: bool,
        eager: Callable[[], Tracked],
    ) -> Tracked:
        """`eager()`, from a CUDA graph if possible."""
        if self.graphs is None:
            return eager()
        self.graphs.compile_ahead("track", features.low, eager)
        if self.graphs.refuses_frame(self.model, features.low) is not None:
            return eager()
        return self.graphs.track(
            self.model, features, remembered, multimask, eager, self._fingerprint
        )
