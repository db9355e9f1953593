"""Predictions for devices whose exit is not sure."""
