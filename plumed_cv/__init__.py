"""Collective variables learned by autoencoders, sampled by Bayesian adaptive biasing force."""

__version__ = "0.1.0"
