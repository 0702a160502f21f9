"""Building blocks of ops: the registry, the native module, dtypes, weights."""
