"""Which cut suits this device: measured, predicted, chosen, and watched while it trains."""
