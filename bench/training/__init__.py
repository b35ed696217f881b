"""One pretraining run: the fit, its steps, checkpoints, loggers, processes and energy."""
