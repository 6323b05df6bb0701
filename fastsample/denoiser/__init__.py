"""The model's face: what a network is given, what it answers, what fits it."""
