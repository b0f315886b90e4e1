"""Score networks that exist already: the metric card of a checkpoint, and of two side by side."""
