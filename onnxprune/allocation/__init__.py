"""Which channels stay and which layers are edited. May import everything below the pipeline."""
