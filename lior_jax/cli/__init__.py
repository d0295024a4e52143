"""The command-line programs, the only modules that print. JAX is imported when something is computed."""
