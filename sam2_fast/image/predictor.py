"""`SAM2ImagePredictor`: encode an image once, then predict masks as often as needed.

Source: official `sam2_image_predictor.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam2_fast.image.decoding import PromptDecoder, num_prompts
from sam2_fast.image.encoded import EncodedImages
from sam2_fast.image.transforms import SAM2Transforms
from sam2_fast.io.images import as_rgb
from sam2_fast.io.transforms import resize_image
from sam2_fast.model import Sam2
from sam2_fast.official.base import SAM2Base
from sam2_fast.official.overrides import needs_official_steps
from sam2_fast.ops.core.exclusive import Exclusive, exclusively
from sam2_fast.prompts import ImagePrompts, image_prompts, join_points
from sam2_fast.recording.cache import Graphs
from sam2_fast.weights.build import build_pretrained, warn_of_unknown

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""(masks, predicted IoU, low-resolution logits), as `predict` returns them."""

NOT_SET = "An image must be set with .set_image(...) before mask prediction."


class SAM2ImagePredictor(PromptDecoder):
    """Masks of one image, or of a batch of images, from clicks, boxes and earlier masks.

    S is the side of the model's input in pixels; a side of low-resolution masks is S / 4 (256 for
    the released models).
    graphs: CUDA graphs of the encoder and of prompts with repeated shapes, used if the model is on
        a GPU; set it to None to use none.
    A predictor is for one thread at a time: calls raise RuntimeError while another one runs.
    check_threads: calls also raise RuntimeError in a thread that has set an image which another
        thread replaced. A thread that has never set an image uses the current one.
    """

    check_threads: bool = True

    def __init__(
        self,
        sam_model: Sam2,
        mask_threshold: float = 0.0,
        max_hole_area: float = 0.0,
        max_sprinkle_area: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """A predictor for a model from `build_sam2`.

        mask_threshold: a pixel with a higher logit is object.
        max_hole_area, max_sprinkle_area: largest holes and specks that are removed, in
            low-resolution pixels.
        kwargs: those of the builders are accepted; unknown ones are ignored with a warning.
        """
        warn_of_unknown(kwargs)
        sam_model = _unwrapped(sam_model)
        if not isinstance(sam_model, Sam2):
            raise TypeError(
                f"sam_model: expected a model from build_sam2, got {type(sam_model).__name__}"
            )
        size = sam_model.config.image_size
        self.model = sam_model
        self.mask_threshold = mask_threshold
        self._transforms = SAM2Transforms(size, mask_threshold, max_hole_area, max_sprinkle_area)
        self.graphs: Graphs | None = Graphs()
        self._bb_feat_sizes = [(size // stride, size // stride) for stride in (4, 8, 16)]
        self.guard = Exclusive("predictor")
        self._images = EncodedImages()

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2ImagePredictor:
        """A predictor with weights from the Hugging Face Hub or a local path.

        Keyword arguments are those of `build_sam2` and of the predictor.
        """
        model = build_pretrained(SAM2Base, model_id, kwargs)
        return cls(model, **kwargs)

    @exclusively
    def reset_predictor(self) -> None:
        """Remove the image."""
        self._images = self._images.removed()

    @exclusively
    @torch.no_grad()
    def set_image(self, image: Any) -> None:
        """Encode one image.

        image: a path, a Pillow image, an array [H, W, 3] of uint8 or of floats in [0, 1], also grey
            or RGBA, or a tensor [3, H, W].
        Raises ValueError or TypeError for other values; the previous image then remains set.
        """
        self._encode([image], is_batch=False)

    @exclusively
    @torch.no_grad()
    def set_image_batch(self, image_list: Sequence[Any]) -> None:
        """Encode images of any sizes together, for `predict_batch`.

        Raises the errors of `set_image`, with the index of the image.
        """
        if not isinstance(image_list, (list, tuple)) or not image_list:
            raise ValueError(
                f"image_list: expected a list of at least one image, got "
                f"{type(image_list).__name__}"
            )
        self._encode(image_list, is_batch=True)

    def _encode(self, images: Sequence[Any], is_batch: bool) -> None:
        pictures = []
        for index, image in enumerate(images):
            try:
                pictures.append(as_rgb(image))
            except ValueError as error:
                raise ValueError(
                    f"image_list[{index}]: {error}" if is_batch else str(error)
                ) from error
        batch = self._transform(pictures, is_batch)
        features = self._encode_batch(batch)
        sizes = [(int(p.shape[0]), int(p.shape[1])) for p in pictures]
        setters = self._images.setters.after_set()
        self._images = EncodedImages(features, sizes, True, is_batch, setters)

    def _transform(self, pictures: Sequence[Any], is_batch: bool) -> Tensor:
        """Pictures as model input [B, 3, S, S], by `_transforms`."""
        transforms = self._transforms
        if self._has_standard_transforms():
            size = transforms.transforms.resolution
            return torch.stack([resize_image(p, size, self.device) for p in pictures])
        if is_batch:
            return transforms.forward_batch(list(pictures)).to(self.device)
        return transforms(pictures[0])[None].to(self.device)

    def _has_standard_transforms(self) -> bool:
        transforms = self._transforms
        return isinstance(transforms, SAM2Transforms) and transforms.is_standard()

    def _encode_batch(self, batch: Tensor) -> dict[str, Any]:
        """The features of model input [B, 3, S, S]."""
        if needs_official_steps(self.model):
            return self._features_by_steps(batch)
        graphs = self._usable_graphs()
        if graphs is None:
            features = self.model.encode_image(batch)
        else:
            features = graphs.encode(self.model, batch)
        return {
            "image_embed": self.model.without_memory(features.low),
            "high_res_feats": [features.high, features.mid],
        }

    def _features_by_steps(self, batch: Tensor) -> dict[str, Any]:
        """`_encode_batch` by the official steps of the model, some of which are overridden."""
        model: Any = self.model
        levels, _, sizes = model._prepare_backbone_features(model.forward_image(batch))[1:]
        levels = [*levels]
        levels[-1] = levels[-1] + model.no_mem_embed
        high, mid, low = (
            x.permute(1, 2, 0).unflatten(2, size) for x, size in zip(levels, sizes, strict=True)
        )
        return {"image_embed": low, "high_res_feats": [high, mid]}

    @exclusively
    def get_image_embedding(self) -> Tensor:
        """A copy of the features of the image, [1, 256, S / 16, S / 16].

        Raises RuntimeError without an image.
        """
        if self._features is None:
            raise RuntimeError(
                "An image must be set with .set_image(...) to generate an embedding."
            )
        self._check_thread()
        embedding: Tensor = self._features["image_embed"]
        return embedding.clone()

    @exclusively
    def predict(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> Arrays:
        """Masks for points, a box, an earlier mask, or several of these together.

        point_coords: [P, 2] (x, y). point_labels: [P], 1 object, 0 background.
        box: [4] (x0, y0, x1, y1). mask_input: low-resolution logits [1, S / 4, S / 4].
        All of them may have a leading dimension B, for B objects.
        Coordinates are image pixels, or fractions of the image if normalize_coords is False.
        multimask_output: three masks, for ambiguous prompts; otherwise one.
        Returns masks [C, H, W] float32 of 0 and 1 (logits if return_logits), predicted IoU [C] and
        low-resolution logits [C, S / 4, S / 4] clamped to +-32; all have a leading dimension B if B
        is not 1.
        Raises RuntimeError without an image, or if another thread uses the predictor or has
        replaced the image of this thread, and ValueError for invalid prompts.
        Source: official `predict`.
        """
        mask, coords, labels, boxes = self._prep_prompts(
            point_coords, point_labels, box, mask_input, normalize_coords
        )
        outputs = self._predict(
            coords, labels, boxes, mask, multimask_output, return_logits=return_logits
        )
        return _arrays(outputs)

    @exclusively
    def predict_batch(
        self,
        point_coords_batch: Sequence[Any] | None = None,
        point_labels_batch: Sequence[Any] | None = None,
        box_batch: Sequence[Any] | None = None,
        mask_input_batch: Sequence[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[
        list[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]]
    ]:
        """`predict` for every image of `set_image_batch`.

        Each argument is None or a list with one entry for each image. Prompts of all images are
        decoded together.
        """
        if not self._is_batch:
            raise RuntimeError(
                "Images must be set with .set_image_batch(...) before predict_batch."
            )
        assert self._orig_hw is not None
        arguments = {
            "point_coords": point_coords_batch,
            "point_labels": point_labels_batch,
            "box": box_batch,
            "mask_input": mask_input_batch,
        }
        count = len(self._orig_hw)
        for name, values in arguments.items():
            if values is not None and len(values) != count:
                raise ValueError(
                    f"{name}_batch: expected {count} entries, one per image, got {len(values)}"
                )
        prompts = []
        for i in range(count):
            coords, labels, box, mask = (
                None if values is None else values[i] for values in arguments.values()
            )
            prepared = self._prep_prompts(coords, labels, box, mask, normalize_coords, img_idx=i)
            prompts.append(ImagePrompts.ordered(*prepared))
        if self._predicts_itself() or self.model.reason_to_call() is not None:
            outputs = [
                self._predict(
                    p.coords,
                    p.labels,
                    p.boxes,
                    p.mask,
                    multimask_output,
                    return_logits=return_logits,
                    img_idx=i,
                )
                for i, p in enumerate(prompts)
            ]
        else:
            outputs = self._predict_images(prompts, multimask_output, return_logits)
        results = [_arrays(output) for output in outputs]
        masks, ious, low = ([result[part] for result in results] for part in range(3))
        return masks, ious, low

    def _prep_prompts(
        self,
        point_coords: Any,
        point_labels: Any,
        box: Any,
        mask_logits: Any,
        normalize_coords: bool,
        img_idx: int = -1,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """(mask input, point coordinates, labels, boxes) in model pixels, for `_predict`.

        Source: official `_prep_prompts`.
        """
        hw = self._image_size(img_idx)
        prompts = image_prompts(
            point_coords,
            point_labels,
            box,
            mask_logits,
            normalize_coords,
            hw,
            self.model.config.image_size,
            self.device,
            self._transforms,
            # one copy to the device; other transforms get tensors on it, as in the official one
            torch.device("cpu") if self._has_standard_transforms() else self.device,
            self.model.strict_prompts,
        )
        return prompts.mask, prompts.coords, prompts.labels, prompts.boxes

    @exclusively
    @torch.no_grad()
    def _predict(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        img_idx: int = -1,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`predict` with tensors in model pixels.

        point_coords: [B, P, 2]. point_labels: [B, P]. boxes: [B, 4] or [B, 2, 2].
        mask_input: [B, 1, S / 4, S / 4] logits.
        Returns masks [B, C, H, W] bool (float32 logits if return_logits), IoU [B, C] and logits
        [B, C, S / 4, S / 4]. Source: official `_predict`.
        """
        hw = self._image_size(img_idx)
        points = join_points(point_coords, point_labels, boxes)
        if points is None and mask_input is None:
            raise ValueError(
                "_predict: expected point_coords with point_labels, boxes or mask_input, got none "
                "of them"
            )
        images = [img_idx] * num_prompts(points, mask_input)
        low, iou = self.decode_prompts(points, mask_input, multimask_output, images)
        return self._at_image_size(low, hw, return_logits), iou, low.clamp(-32.0, 32.0)

    def _image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image. Raises RuntimeError without an image."""
        if not self._is_image_set or self._orig_hw is None:
            raise RuntimeError(NOT_SET)
        self._check_thread()
        return self._orig_hw[index]

    def _check_thread(self) -> None:
        if self.check_threads:
            self._images.check_thread()

    @contextmanager
    def without_images(self) -> Iterator[None]:
        """No image is set afterwards; after an error those that are set now are."""
        images = self._images
        try:
            yield
        except BaseException:
            self._images = images
            raise
        self.reset_predictor()

    def is_overridden(self) -> bool:
        """Whether `_predict` or the transforms have been replaced, so that they must be called."""
        return self._predicts_itself() or not self._has_standard_transforms()

    def _predicts_itself(self) -> bool:
        """Whether a subclass or an attribute of the predictor replaces `_predict`."""
        return type(self)._predict is not SAM2ImagePredictor._predict or "_predict" in vars(self)


def _unwrapped(model: Any) -> Any:
    """The model inside a wrapper that passes attributes on: of torch.compile or of peft.

    Predictors never call `forward` of the model, which is all that such a wrapper changes.
    """
    model = getattr(model, "_orig_mod", model)
    base = getattr(model, "get_base_model", None)
    return base() if callable(base) else model


def _arrays(outputs: tuple[Tensor, Tensor, Tensor]) -> Arrays:
    masks, iou, low = (output.squeeze(0).float().cpu().numpy() for output in outputs)
    return masks, iou, low
