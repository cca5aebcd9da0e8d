"""What the engine needs of the outside, as Protocols whose docstrings are the contracts."""
