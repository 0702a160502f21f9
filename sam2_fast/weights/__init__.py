"""Weights: files, parameter names, and building models from them."""
