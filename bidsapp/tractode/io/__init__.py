"""One file a format: paths in, fields out, and back; every input is read once and whole."""
