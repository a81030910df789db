"""Integrators of `W' = -grad L(W)` on the manifold of low-rank matrices, one file each."""
