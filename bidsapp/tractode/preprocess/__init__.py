"""What is done to a scan before models see it: brain mask, check of the gradient table."""
