"""Networks as rows of conditions."""
