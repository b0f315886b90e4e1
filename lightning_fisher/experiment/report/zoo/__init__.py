"""The judge: which measure orders which networks, over many options at once."""
