"""Trees of trajectories as rows of tokens, and batches of rows: all numpy but the sums of a row's segments."""
