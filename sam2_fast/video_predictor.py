"""The former name of `sam2_fast.video.predictor`, kept for programs that import it."""

from sam2_fast.video.predictor import SAM2VideoPredictor as SAM2VideoPredictor
from sam2_fast.video.predictor import SAM2VideoPredictorVOS as SAM2VideoPredictorVOS
