"""Rounds by name, as `splitee export --round` takes them."""

LAST = "last"
BEST = "best"
