"""What stayed the same in repaired networks, proved."""
