"""Stream agents: thin loops that hand each event to one plain function."""
