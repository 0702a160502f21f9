"""Benchmarks, which compare outputs before they time anything: `python -m benchmarks.run`."""
