"""Networks with their weights, one file each."""
