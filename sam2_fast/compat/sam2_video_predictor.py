"""`sam2.sam2_video_predictor`."""

from sam2_fast.video.predictor import SAM2VideoPredictor as SAM2VideoPredictor
from sam2_fast.video.predictor import SAM2VideoPredictorVOS as SAM2VideoPredictorVOS
