"""Results held against the original and against limits; it may import all below the pipeline."""
