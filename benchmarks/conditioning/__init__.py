"""What conditioning costs and keeps: `python -m benchmarks run --domain conditioning`."""
