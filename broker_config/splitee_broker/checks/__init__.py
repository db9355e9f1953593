# SPDX-License-Identifier: Apache-2.0
"""The checks of what a fleet needs from its broker, one per file; `splitee broker check` runs them."""
