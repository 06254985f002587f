"""The peers' experiment on MNIST: fog-corrupted digits repaired in the ReLU 3x100 and 9x100 networks."""
