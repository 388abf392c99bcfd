"""Programs for what takes longer than a test may."""
