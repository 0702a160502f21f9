"""Experiments of the SAM 2 paper on held-out clips, and the scores that `nano` must reach."""
