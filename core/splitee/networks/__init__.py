# SPDX-License-Identifier: Apache-2.0
"""Networks: made, traced, measured, and cut (`split`)."""
