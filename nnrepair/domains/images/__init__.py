"""Images: data, networks, training."""
