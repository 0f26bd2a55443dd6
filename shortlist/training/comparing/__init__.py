"""Which settings are better, and which method to take."""
