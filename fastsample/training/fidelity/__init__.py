"""The fidelity loss: samples of a short chain compared with data."""
