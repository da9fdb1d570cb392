"""Simulated participants with known truth: anatomy, bundles, tissues, signal, warp."""
