"""Planning: memory, collectives, time and cost of a train step on accelerators that need not exist here."""
