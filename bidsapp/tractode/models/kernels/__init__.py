"""Compiled loops of the models for CPUs: many voxels side by side in vector registers.

numba is imported by the modules of this package, so they are imported only where a fit runs.
"""
