"""The engine interface, and what all engines share: items, the line for a lock, worker threads."""
