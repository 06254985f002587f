"""Data, networks and their tasks.

Data sets, models and specifications of the fields that the library is used in; no repair code.
"""
