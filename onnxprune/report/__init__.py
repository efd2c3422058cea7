"""The result of a run, as a value and at the terminal."""
