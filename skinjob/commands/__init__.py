"""The commands by theme: each parses, calls one function, prints, and suggests the next."""
