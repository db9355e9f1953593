"""What a commit does to the models. Knows tensors, not MQTT; imports torch."""
