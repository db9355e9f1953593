"""One command for each claim of speed, size or safety."""
