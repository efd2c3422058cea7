"""Read and normalize a model, trace its channels by one rule per operator (`operators`, `rules`), count costs.

Imports `errors`, `types`, `output` and `runtime`; nothing here deletes a channel or knows what a run is.
"""
