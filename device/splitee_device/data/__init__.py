# SPDX-License-Identifier: Apache-2.0
"""Where a device's images come from, and batches of them."""
