"""Experiments of the SAM 2 paper on clips that nobody trained on, and what `nano` must reach."""
