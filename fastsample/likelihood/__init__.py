"""Likelihood: bits per dimension from the variational bound."""
