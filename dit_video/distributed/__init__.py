"""Device mesh, sharding rules, multi-process (multi-host) setup, and chip specifications."""
