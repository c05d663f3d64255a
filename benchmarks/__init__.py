"""Measurements of speed. Each module is a command; each compares ratios within one run, since machines are noisy."""
