"""Terms that are added to the loss of a training step and differentiated with it: margins, Jacobians, flat boxes."""
