# SPDX-License-Identifier: Apache-2.0
"""Rounds by name, as `splitee export --round` takes them."""

LAST = "last"
BEST = "best"
