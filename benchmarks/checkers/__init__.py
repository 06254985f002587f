"""What independent readers and checkers make of files that nobody meant to write."""
