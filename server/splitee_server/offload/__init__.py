# SPDX-License-Identifier: Apache-2.0
"""Predictions for devices whose exit is not sure."""
