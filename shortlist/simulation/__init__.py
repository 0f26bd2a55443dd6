"""A world whose truth is known: hidden tastes, items, sessions and the clicks they would give."""
