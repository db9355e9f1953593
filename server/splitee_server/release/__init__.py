"""What was trained on its way to the devices: exported, offered, delivered."""
