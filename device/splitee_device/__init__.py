"""What runs on a device: its data, its share of the network, and the agent that speaks with the server."""
