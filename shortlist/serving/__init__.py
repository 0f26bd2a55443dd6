"""How do we answer in time? The HTTP service around the pipeline."""
