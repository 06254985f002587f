"""Collision avoidance: ACAS Xu."""
