"""Benchmarks: one folder per domain, results as committed JSON, tables and figures generated from them."""
