"""`sam2.utils`."""
