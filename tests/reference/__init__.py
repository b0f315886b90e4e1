"""Naive float64 references of the method, and the table of cases all tests use; no code of the package."""
