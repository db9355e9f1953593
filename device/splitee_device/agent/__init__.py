# SPDX-License-Identifier: Apache-2.0
"""A device in a run: what it hears, what it says, and the rounds that it trains."""
