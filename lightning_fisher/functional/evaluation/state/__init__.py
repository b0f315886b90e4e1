"""Leave a module unchanged: modes, buffers, attributes, random state."""
