"""A pass over a module that leaves no trace: samples, losses, precision, state."""
