"""`sam2.modeling.sam`."""
