"""Films: two-stage recommendation over MovieLens."""
