"""How long a request takes: laws, profiles, and accelerators by name."""
