"""The command line: one module a noun, each loaded when it is used."""
