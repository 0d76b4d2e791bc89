"""The model: records, views of them, and the mutations that change them.

Nothing here does I/O, sleeps, or knows about threads or an event loop. How a record is spelled as
text is in :mod:`aimagestore._format`, which is pure as well.
"""
