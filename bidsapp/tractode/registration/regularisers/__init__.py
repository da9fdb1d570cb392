"""One file a regulariser."""
