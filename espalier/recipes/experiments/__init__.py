"""Many runs: comparisons, sweeps, searches and lottery tickets, and the tables made of them."""
