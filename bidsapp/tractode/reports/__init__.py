"""Figures of fields and the pages that hold them, each one file without anything loaded from elsewhere."""
