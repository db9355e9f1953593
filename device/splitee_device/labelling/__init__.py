# SPDX-License-Identifier: Apache-2.0
"""A person labels the device's own images on the device: choice, moves, whether it was enough. No torch."""
