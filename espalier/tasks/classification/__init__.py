"""Image classification: data sets and models by name."""
