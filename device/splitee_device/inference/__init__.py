"""A device that predicts: its models, their delivery, its camera or folder. Free of torch."""
