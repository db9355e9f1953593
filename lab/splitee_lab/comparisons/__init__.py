# SPDX-License-Identifier: Apache-2.0
"""Baselines for the fleet's strategies, with the same images, rounds, batches and schedule."""
