"""Running plans: drawing samples, inverting data to noise, and the noise itself."""
