"""How each source is fitted."""
