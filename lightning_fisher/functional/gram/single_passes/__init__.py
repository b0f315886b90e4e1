"""Passes of single samples, where no layer has a rule: one after the other, or all at once by vmap."""
