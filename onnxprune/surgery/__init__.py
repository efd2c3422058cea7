"""Changes of a model that are proven: edits of layers. May import `graph` and `runtime`."""
