"""The command `dit-video`: one module per sub-command; `usage/` has what is typed after each."""
