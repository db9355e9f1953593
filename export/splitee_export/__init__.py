# SPDX-License-Identifier: Apache-2.0
"""Turns what a fleet has trained into ONNX graphs that run without torch and answer the same."""
