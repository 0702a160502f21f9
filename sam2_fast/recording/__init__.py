"""CUDA graphs of a model's work: captured, cached while the model is unchanged, and replayed."""
