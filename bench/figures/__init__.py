"""Figures: one file and one YAML each, drawn from tables of run records."""
