"""Settings from the environment, logging, and the composition root."""
