"""Tensors in, tensors out: the mathematics of low-rank training. Depends on torch alone."""
