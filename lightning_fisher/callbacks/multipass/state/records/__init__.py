"""Single things that a `training_step` may change, as they are now: each knows how to put itself back."""
