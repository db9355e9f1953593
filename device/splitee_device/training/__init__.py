"""The device's share of the training, and its durable state. Imports torch."""
