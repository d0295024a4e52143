"""The command lines: the only place that prints. JAX is imported when there is something to compute."""
