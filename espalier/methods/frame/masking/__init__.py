"""Methods that zero weights: on a schedule, or once before the first step."""
