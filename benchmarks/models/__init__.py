"""How fast weights come from disk, RAM and the network, against what the machine can do."""
