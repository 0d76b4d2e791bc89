"""What holds for every store, wherever it keeps its images: each test runs on both engines."""
