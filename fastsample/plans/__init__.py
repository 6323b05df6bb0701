"""Plans: compiled samplers, the laws that their rows obey, and their files."""
