"""`sam2.sam2_video_predictor_legacy`: its one advantage, that corrections are kept, is the only
behaviour here.
"""

from sam2_fast.video.predictor import SAM2VideoPredictor as SAM2VideoPredictor
