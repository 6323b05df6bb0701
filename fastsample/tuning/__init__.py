"""Tuned plans: the best K-step sampler for one model, found by measuring."""
