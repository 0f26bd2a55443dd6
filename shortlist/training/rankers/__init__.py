"""How each ranker is fitted, and what its scores mean as probabilities."""
