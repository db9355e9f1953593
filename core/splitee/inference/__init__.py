# SPDX-License-Identifier: Apache-2.0
"""Exported models: graphs on ONNX Runtime, manifests, adaptive prediction. Without torch."""
