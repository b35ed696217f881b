"""`bench speed`: full training steps of each strategy against stock ones, interleaved in one run."""
