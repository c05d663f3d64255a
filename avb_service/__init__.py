"""Distributed training of latent-variable generative models, with log-likelihoods that can be believed."""
