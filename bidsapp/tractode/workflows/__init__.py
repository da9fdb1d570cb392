"""The fifth floor: which steps a participant needs, and how they hang together."""
