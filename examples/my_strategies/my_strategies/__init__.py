"""A plug-in of `bench`: an objective, a task and a figure; their YAML files lie in the folder `conf`."""
