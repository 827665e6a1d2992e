"""The only place where network, objective and batch meet."""
