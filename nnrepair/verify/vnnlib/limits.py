"""How large files may be; errors state the limits that they meet."""

from __future__ import annotations

import math

#: Of a file: bytes once unpacked; words, parentheses and comments; how deeply parentheses nest.
MAX_BYTES, MAX_WORDS, MAX_DEPTH = 64 * 2**20, 4_000_000, 200
#: Of its disjunctive normal form: clauses; bounds of boxes, and coefficients of rows.
MAX_CLAUSES, MAX_NUMBERS = 100_000, 5_000_000
#: Digits of a constant (the longest sum of two floats has about 2100) and of its exponent.
MAX_DIGITS, MAX_EXPONENT_DIGITS = 4000, 3
#: Bits of what a term computes.
MAX_BITS = math.ceil(3 * MAX_DIGITS * math.log2(10))


def most() -> str:
    """Return what an error says of MAX_NUMBERS."""
    return f"at most {MAX_NUMBERS} bounds of boxes, and as many coefficients of rows, are read. Split the property."
