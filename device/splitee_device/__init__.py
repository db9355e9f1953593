# SPDX-License-Identifier: Apache-2.0
"""What runs on a device: its data, its share of the network, and the agent that speaks with the server."""
