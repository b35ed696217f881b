"""Statistics -> pages, tables and figures, and the check that a report is what its records say."""
