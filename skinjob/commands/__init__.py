"""The commands. Each parses its options, calls one function, prints, and suggests the next."""
