"""Compiled samplers: rows of coefficients, their laws, their files."""
