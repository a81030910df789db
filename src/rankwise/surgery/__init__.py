"""Changing the layers of a model in place: which ones, what it would cost, adapting, merging."""
