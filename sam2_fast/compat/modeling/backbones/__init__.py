"""`sam2.modeling.backbones`."""
