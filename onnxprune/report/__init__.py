"""Render the result of a run: document, tables and sentences; console, Markdown, HTML, CI formats and plots.

Imports everything below the pipeline; only the pipeline and the command line import it.
"""
