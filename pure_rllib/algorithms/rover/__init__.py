"""ROVER."""
