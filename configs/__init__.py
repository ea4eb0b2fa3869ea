"""Which configurations come with the program? YAML for Hydra, by group; data only."""
