"""The two sides of `benchmarks.race`, and what both have in common."""
