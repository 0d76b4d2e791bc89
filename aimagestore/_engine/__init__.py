"""What the store needs of the place where it keeps its images; nothing here names a path."""
