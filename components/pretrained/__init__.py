"""Weights that others trained: where they are found, and how they get into our modules."""
