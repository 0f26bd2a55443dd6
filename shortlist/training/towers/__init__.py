"""The two towers: what they learn from, the model, its training, and what is written for serving."""
