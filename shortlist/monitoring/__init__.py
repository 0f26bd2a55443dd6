"""Is it still true? The audit that compares what was served with what replay says."""
