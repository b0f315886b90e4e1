"""Gradients at perturbed points, sub-batch by sub-batch: Algorithm 1 and its relatives."""
