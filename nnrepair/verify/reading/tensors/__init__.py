"""Functions of torch, on symbols.

Each file has a table, by the names of the functions.
"""
