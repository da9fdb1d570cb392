"""Scores against truth: tractometer, overlap, folding, quality of a registration, agreement of tractograms."""
