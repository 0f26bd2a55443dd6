"""What could we show? Sources of candidates: popular items, vectors and their index, and who may be shown at all."""
