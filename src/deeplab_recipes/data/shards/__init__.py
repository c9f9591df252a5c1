"""Shards: a data set in a few large files, how they are made, where they lie and how they are read."""
