"""Image classifiers that people ship: real mistakes, a shift that happens, and JPEG as a corruption."""
