"""Records -> statistics, comparisons, claims and advice. Imports neither torch nor training."""
