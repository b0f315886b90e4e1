"""What a run leaves behind: its row, its folder, its checkpoints, where it came from."""
