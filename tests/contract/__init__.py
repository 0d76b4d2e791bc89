"""Tests of what holds for every store: each runs on a directory, on a directory with an additional
store, and on a cluster.
"""
