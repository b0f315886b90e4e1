"""Losses: of one sample each or of a batch, with parameters of their own, with denominators of their own."""
