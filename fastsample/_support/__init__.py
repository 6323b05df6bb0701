"""Helpers that every folder uses: argument checks, stored files, devices, several processes."""
