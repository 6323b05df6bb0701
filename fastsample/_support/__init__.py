"""Helpers for the whole package: argument checks, stored files, devices, processes."""
