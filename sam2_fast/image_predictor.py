"""The former name of `sam2_fast.image.predictor`, kept for programs that import it."""

from sam2_fast.image.predictor import SAM2ImagePredictor as SAM2ImagePredictor
