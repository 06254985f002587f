"""Repairs of graph networks at the size of Reddit."""
