"""Where runs are executed: this machine, Slurm or Ray, one file each."""
