"""Methods that train weights beside pruned twins, with multipliers that pull them together (SLR, ADMM)."""
