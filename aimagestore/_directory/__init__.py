"""The blocking part: the containers/storage directory as an engine.

Nothing here awaits. Every call may wait for a disk, so the shell makes them in worker threads.
"""
