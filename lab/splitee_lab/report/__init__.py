"""Reports as pages, with their plots."""
