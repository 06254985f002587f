"""Benchmarks of region edits: PRDNN's polygons on ACAS Xu and its lines on MNIST."""
