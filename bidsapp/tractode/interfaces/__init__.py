"""The fourth floor: nipype nodes that go paths → fields → one call → fields → paths, and hold no arithmetic."""
