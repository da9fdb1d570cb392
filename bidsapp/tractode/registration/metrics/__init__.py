"""One file a similarity metric."""
