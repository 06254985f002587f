"""Models become graphs of maps."""
