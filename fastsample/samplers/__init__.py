"""One file per sampler: a function from a schedule and a grid to a plan."""
