"""Images as networks see them, and those that a device keeps beside its model."""
