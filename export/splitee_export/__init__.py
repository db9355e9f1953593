# SPDX-License-Identifier: Apache-2.0
"""Exports trained networks as ONNX graphs, which run without torch and give the same predictions."""
