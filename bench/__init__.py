"""Which pretraining strategy should I use? Controlled comparisons with measured verdicts."""
