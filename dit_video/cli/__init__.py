"""The command `dit-video`: one module per sub-command."""
