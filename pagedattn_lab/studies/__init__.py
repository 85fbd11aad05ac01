"""What the book measures: simulations, and how their figures compare with the paper's (chapters 02, 03, 05 and 06)."""
