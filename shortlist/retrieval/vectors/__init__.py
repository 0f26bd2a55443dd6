"""The index of vectors: how they are searched, what that costs, and how it changes while it serves."""
