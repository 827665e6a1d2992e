"""What a train step would take on devices that are not there: memory, collectives, time, cost."""
