"""Measures what the store costs, beside other libraries and programs that keep images."""
