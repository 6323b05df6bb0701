"""Noise schedules: how much signal (alpha) and noise (sigma) x_t holds at each time t."""
