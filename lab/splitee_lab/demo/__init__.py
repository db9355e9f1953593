"""A whole fleet on one machine, in one command."""
