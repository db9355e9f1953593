"""How a network is made, traced and measured before it is cut; `splitee.network` is the public face."""
