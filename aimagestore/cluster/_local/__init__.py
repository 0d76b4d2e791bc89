"""PostgreSQL and SeaweedFS on this machine, for the demo and for tests."""
