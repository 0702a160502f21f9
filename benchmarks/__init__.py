"""Benchmarks. `python -m benchmarks.run` checks that outputs are equal; a case with different
outputs is not timed.
"""
