"""The degradation beside BasicSR's own functions, kornia's and the limit."""
