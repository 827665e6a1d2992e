"""Configuration: dataclass trees as JSON, command-line overrides, and users' Python config files."""
