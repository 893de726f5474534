"""Data to explain, each kind in its own module: images, handwritten digits, sentences and tables."""
