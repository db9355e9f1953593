# SPDX-License-Identifier: Apache-2.0
"""Monitoring: Prometheus, Home Assistant, TensorBoard."""
