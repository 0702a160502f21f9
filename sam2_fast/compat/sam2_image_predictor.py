"""`sam2.sam2_image_predictor`."""

from sam2_fast.image.predictor import SAM2ImagePredictor as SAM2ImagePredictor
