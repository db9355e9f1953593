# SPDX-License-Identifier: Apache-2.0
"""Names of rounds for `splitee export --round`."""

LAST = "last"
BEST = "best"
