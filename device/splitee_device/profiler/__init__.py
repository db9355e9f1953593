# SPDX-License-Identifier: Apache-2.0
"""Which cut suits this device: measured, predicted, chosen, and watched while it trains."""
