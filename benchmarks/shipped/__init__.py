"""Networks as others ship them."""
