"""Comparisons in one process, without a broker."""
