"""Networks as rows: one per condition."""
