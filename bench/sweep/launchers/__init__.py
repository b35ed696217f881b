"""Launchers that execute runs: this machine, Slurm or Ray, one file each."""
