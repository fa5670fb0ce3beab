"""The stages of a run: `run(config)` makes one artifact from others, or finds it made."""
