"""Data sets, models and specifications of the worlds that the library is used in; no repair code lives here."""
