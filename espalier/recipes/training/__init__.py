"""One run: from a recipe to a trained model, its folder on disk, and back to where it stopped."""
