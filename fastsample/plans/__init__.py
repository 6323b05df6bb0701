"""Plans: samplers compiled to tables of coefficients, with their checks and files."""
