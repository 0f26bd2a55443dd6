"""What happened? Declarations of entities and events, the log that keeps them, and the labels they become."""
