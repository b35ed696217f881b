"""The one Transformer that all strategies share, and the vision tower of the same blocks."""
