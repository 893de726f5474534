"""Faster execution with the same results: values that are computed once, and faster operations."""
