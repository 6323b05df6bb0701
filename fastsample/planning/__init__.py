"""The dynamic programs that choose times, and the costs they run on."""
