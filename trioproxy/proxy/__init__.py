"""The trait, the session and the engine that runs one exchange after another."""
