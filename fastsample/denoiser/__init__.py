"""The network and its conventions: inputs, outputs, conditions, and what fits it."""
