"""Which of them together? Rules of the slate: diversity, caps, fairness, pins, boosts, exclusions and exploration."""
