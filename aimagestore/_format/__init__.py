"""The text of images.json: JSON as Go spells it, blocks of records, parsing and composing.

Nothing here does I/O. Long loops pause now and then, so that other threads can run.
"""
