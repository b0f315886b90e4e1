"""What a `training_step` may touch besides its loss, taken down before an extra pass and put back after it."""
