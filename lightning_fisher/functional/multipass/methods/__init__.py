"""Methods other than Algorithm 1 that look for flat minima by gradients at perturbed points."""
