"""What can be learned? Training sets, towers, rankers, their evaluation and the releases they become."""
