"""Few-step sampling of trained diffusion models."""
