"""The search over hyperparameters, apart from Ray: the space, what is measured, which point is chosen."""
