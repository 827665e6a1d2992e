"""The device mesh, the table of sharding, several processes that are one program, and what chips can do."""
