"""A JAX function as a flat graph of primitive operations."""
