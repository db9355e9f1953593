"""Networks: made, traced, measured, and cut (`split`)."""
