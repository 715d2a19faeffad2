"""Methods that remove channels: look at every check, choose under a budget, cut, go on with the smaller model."""
