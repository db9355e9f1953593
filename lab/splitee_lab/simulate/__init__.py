# SPDX-License-Identifier: Apache-2.0
"""Comparisons in one process, without a broker."""
