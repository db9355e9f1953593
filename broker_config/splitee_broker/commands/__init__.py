"""The broker's command."""
