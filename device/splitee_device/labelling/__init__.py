# SPDX-License-Identifier: Apache-2.0
"""Labelling of the device's own images on the device: choice, moves, learning curve. No torch."""
