"""Measurements. Each module writes JSON to ``benchmarks/results`` and prints a table."""
