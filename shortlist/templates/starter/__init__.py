"""The smallest whole project: a tiny catalogue of recipes."""
