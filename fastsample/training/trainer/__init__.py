"""Provides the training loop, its data, optimiser and checkpoints."""
