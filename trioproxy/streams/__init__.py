"""Message streams: one interface for whatever carries an HTTP exchange."""
