"""Building blocks: trunks that read and write images, encoders, the decoder, adversaries.

Floor 1. Import from the module that holds the thing.
"""
