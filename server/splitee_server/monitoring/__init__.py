"""For people who watch: Prometheus, Home Assistant, TensorBoard."""
