"""The tables of a report, one module per section of its page."""
