"""The fidelity loss: a distance between samples of a short chain and data."""
