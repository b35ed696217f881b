"""Downstream tasks, one file per family, and the protocols that measure a trained model by them."""
