"""One file per objective: its corruption, its loss, its features, and nothing else."""
