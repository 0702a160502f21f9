"""Measurements. `python -m benchmarks.run` proves outputs equal first and refuses to time a red
case.
"""
