# SPDX-License-Identifier: Apache-2.0
"""What a fleet needs of its broker, one file a check; `splitee broker check` runs them."""
