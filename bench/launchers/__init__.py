"""Where a sweep's runs are done, one file per launcher."""
