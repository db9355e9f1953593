"""Processes, brokers and limits on this machine."""
