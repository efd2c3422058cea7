"""The commands as lists of stages: each stage takes a `Run` and returns it with what the stage adds.

May import everything below; only the command line imports it.
"""
