"""Side-by-side timings and memory of Lightning Fisher and its neighbours: ``python -m benchmarks --help``."""
