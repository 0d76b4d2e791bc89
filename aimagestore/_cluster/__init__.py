"""Blocking: records in PostgreSQL, big data in an object store; never a thread of its own."""
