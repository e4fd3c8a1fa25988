"""``python -m trioproxy``: the command line."""

from __future__ import annotations

from .server._cli import main

if __name__ == "__main__":
    main()
