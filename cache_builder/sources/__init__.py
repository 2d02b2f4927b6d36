"""Known data sets, one module each with `load(config, seed) -> {"train", "validation", "test"}` of examples."""
