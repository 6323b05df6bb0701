"""Computes likelihoods: bits per dimension from the variational bound."""
