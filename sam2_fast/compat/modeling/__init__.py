"""`sam2.modeling`."""
