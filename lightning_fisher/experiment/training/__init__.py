"""Train one network and record it as a row."""
