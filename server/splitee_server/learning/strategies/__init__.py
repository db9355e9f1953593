# SPDX-License-Identifier: Apache-2.0
"""Cooperative strategies, one file each."""
