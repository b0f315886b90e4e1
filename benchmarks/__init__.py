"""Side-by-side timings and memory of Lightning Fisher and its neighbors: ``python -m benchmarks --help``."""
