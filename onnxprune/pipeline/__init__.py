"""The commands as lists of stages: each stage takes a `Run` and returns a changed copy.

May import everything below; only the command line imports it.
"""
