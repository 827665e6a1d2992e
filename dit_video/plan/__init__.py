"""Planning: memory, collectives, time and cost of a train step, or a task's function, on accelerators not here."""
