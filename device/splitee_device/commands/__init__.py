"""A device's commands, one file each."""
