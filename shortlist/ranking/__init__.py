"""In what order? Scorers: the linear baseline and gradient-boosted trees."""
