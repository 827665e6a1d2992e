"""Options, help and examples of every command; nothing here imports what takes time."""
