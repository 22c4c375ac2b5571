"""Our plugins for Hydra: the sweeper, and verl's config as a config source."""
