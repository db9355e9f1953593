# SPDX-License-Identifier: Apache-2.0
"""For people who watch: Prometheus, Home Assistant, TensorBoard."""
