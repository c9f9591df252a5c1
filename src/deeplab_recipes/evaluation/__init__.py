"""Evaluation protocols and what is drawn from their results."""
