"""Turns what a fleet has trained into ONNX graphs that run without torch, and checks that they answer the same."""
