"""The embedded stores: SQLite files under the data directory."""
