"""Data-parallel training on Ray Train.

Floor 8. Only this package and `tuning` import ray.
"""
