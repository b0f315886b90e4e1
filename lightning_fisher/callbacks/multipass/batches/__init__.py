"""A batch in parts: how it is split, and which part a pass is given."""
