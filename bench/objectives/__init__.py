"""Pretraining objectives, one file each: corrupt a batch, compute a loss, expose features."""
