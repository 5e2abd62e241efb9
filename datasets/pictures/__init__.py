"""Pictures of clouds: read from files or drawn."""
