"""Holds the models and data that come with the package, and recipes to train the models."""
