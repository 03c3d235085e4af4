"""Judging compositions: the judge, the benchmark, and the intervals around its figures."""
