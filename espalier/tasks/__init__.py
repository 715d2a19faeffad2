"""What is learned: data, models, losses and metrics of one kind of problem each."""
