"""Which channels stay so that the targets are met; it may import all below the pipeline."""
