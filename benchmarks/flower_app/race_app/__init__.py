# SPDX-License-Identifier: Apache-2.0
"""Flower's side of `benchmarks.race`: it needs flwr, torch, torchvision and numpy, but not splitee."""
