"""Readers: one file each, loaded by name."""
