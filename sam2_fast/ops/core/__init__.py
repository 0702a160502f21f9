"""What ops are made of: the registry, the native module, dtypes, weights."""
