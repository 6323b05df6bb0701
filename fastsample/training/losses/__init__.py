"""Provides diffusion losses, each computed from one network call per batch."""
