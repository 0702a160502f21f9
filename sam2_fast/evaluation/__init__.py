"""Scores of masks (J, F and J&F), and simulated users that prompt images and videos.

Scores are computed for frames, videos and benchmark folders.
"""

from sam2_fast.evaluation.curves import groups_from_csv, save_curves
from sam2_fast.evaluation.folders import score_folders, score_video
from sam2_fast.evaluation.image_clicks import ImageScore, ImageScores, image_clicks, simulate_images
from sam2_fast.evaluation.interactive import (
    Interaction,
    mean_j_and_f,
    offline,
    offline_seconds,
    online,
    online_seconds,
)
from sam2_fast.evaluation.metrics import (
    boundary,
    boundary_accuracy,
    near,
    region_similarity,
    tolerance,
)
from sam2_fast.evaluation.scores import ObjectScore, Report, Unjudged, VideoScores
from sam2_fast.evaluation.semi_supervised import follow, semi_supervised
from sam2_fast.evaluation.users import Round, Rounds, User, simulate_users, simulate_video

__all__ = [
    "ImageScore",
    "ImageScores",
    "Interaction",
    "ObjectScore",
    "Report",
    "Round",
    "Rounds",
    "Unjudged",
    "User",
    "VideoScores",
    "boundary",
    "boundary_accuracy",
    "follow",
    "groups_from_csv",
    "image_clicks",
    "mean_j_and_f",
    "near",
    "offline",
    "offline_seconds",
    "online",
    "online_seconds",
    "region_similarity",
    "save_curves",
    "score_folders",
    "score_video",
    "semi_supervised",
    "simulate_images",
    "simulate_users",
    "simulate_video",
    "tolerance",
]
