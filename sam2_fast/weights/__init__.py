"""Weights: files, names, and models built from them."""
