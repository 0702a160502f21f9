"""Checks and measurements for the first minutes on a GPU; see `__main__.py`."""
