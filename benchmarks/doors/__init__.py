"""Random calls of `nnrepair.fix`: each ends in a true outcome or in a refusal of the package's own."""
