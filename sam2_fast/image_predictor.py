"""The former home of `sam2_fast.image.predictor`, kept for programs that import from it."""

from sam2_fast.image.predictor import SAM2ImagePredictor as SAM2ImagePredictor
