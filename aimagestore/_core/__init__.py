"""The pure part: records, snapshots and the changes between them.

Nothing here does I/O, waits, or knows of an event loop.
"""
