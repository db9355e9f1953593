"""Where a device's images come from, and batches of them."""
