"""What a method with extra passes needs inside Lightning: `training_step` run again and again, without a trace."""
