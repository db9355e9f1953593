"""What this machine is and what it allows."""
