"""What was learned, as serving reads it: weights, vectors, towers."""
