"""Measurements behind the performance claims, one module per claim; see README.md beside this."""
