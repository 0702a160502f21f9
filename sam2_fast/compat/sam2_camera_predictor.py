"""`sam2.sam2_camera_predictor`: the module of forks that track cameras."""

from sam2_fast.video.camera import SAM2CameraPredictor as SAM2CameraPredictor
