"""Tables in, pictures out; no torch."""
