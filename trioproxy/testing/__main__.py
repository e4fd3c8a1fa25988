"""``python -m trioproxy.testing --seed N --minutes M``: the proving ground, for long."""

from __future__ import annotations

import sys

from ._fuzz import main

sys.exit(main())
