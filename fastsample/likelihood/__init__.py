"""Bits per dimension."""
