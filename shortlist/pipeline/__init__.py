"""How does a request flow? Queries, candidates, slates, the stages between them and the runner that calls them."""
