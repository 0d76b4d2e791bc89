"""Blocking: records in PostgreSQL, big data in an object store; many threads use it at once."""
