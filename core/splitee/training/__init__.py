"""What every trainer of a fleet shares. Imports torch."""
