"""`sam2.sam2_video_predictor_legacy`: the same predictor as in `sam2.sam2_video_predictor`.

The official legacy predictor differs in that it keeps corrections; ours always does.
"""

from sam2_fast.video.predictor import SAM2VideoPredictor as SAM2VideoPredictor
