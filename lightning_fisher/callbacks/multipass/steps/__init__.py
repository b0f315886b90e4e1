"""The regularized form of a `training_step`."""
