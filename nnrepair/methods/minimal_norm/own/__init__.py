"""Objectives and constraints through cvxpy."""
