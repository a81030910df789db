"""Tables and pictures of runs, from plain data."""
