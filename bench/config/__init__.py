"""What a run is: settings, composed by Hydra and checked; its identity; classes built from names."""
