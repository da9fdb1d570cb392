"""Compiled loops for CPUs: each seed is followed whole by one scalar loop.

numba is imported by the modules of this package, so they are imported only where an engine is built.
"""
