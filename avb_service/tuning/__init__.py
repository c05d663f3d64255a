"""Searching hyper-parameters with Ray Tune.

Floor 9.
"""
