"""Render the result of a run: document, tables and sentences; console, Markdown, HTML, CI formats and plots.

It imports `runtime`, `data`, `graph`, `metrics`, `surgery`, `evaluation` and `allocation`, and modules of the root.
"""
