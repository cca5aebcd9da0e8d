"""Live state, progress events and the shared cache on a Redis server."""
