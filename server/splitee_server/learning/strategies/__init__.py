"""Cooperative strategies, one file each."""
