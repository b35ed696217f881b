"""Settings of a run: composed by Hydra and checked; the run's identity; classes built from names."""
