"""CUDA graphs of a model's work: captured, kept while they hold, replayed."""
