"""The editing benchmark on Cora, a citation graph."""
