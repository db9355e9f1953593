# SPDX-License-Identifier: Apache-2.0
"""Predictions for images that devices offload."""
