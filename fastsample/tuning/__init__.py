"""Tuning: the plan of K steps whose results are nearest to those of a fine run, for one model."""
