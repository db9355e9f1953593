# SPDX-License-Identifier: Apache-2.0
"""The two sides of `benchmarks.race`, and their common code."""
