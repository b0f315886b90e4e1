"""When the phase with the penalty begins, and how much the penalty weighs from then on."""
