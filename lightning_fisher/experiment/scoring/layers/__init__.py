"""γ̂ layer by layer, in a metric card."""
