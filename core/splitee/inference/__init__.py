"""Exported models: graphs on ONNX Runtime, manifests, adaptive prediction. Free of torch."""
