"""The commands that export, one file each."""
