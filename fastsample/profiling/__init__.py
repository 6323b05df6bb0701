"""What a model gets wrong at every time, measured once."""
