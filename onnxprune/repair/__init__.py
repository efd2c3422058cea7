"""Least squares on the weights that are left. Imports `graph` and `capture`."""
