"""``python -m kernbench.weight_sync``."""

import sys

from kernbench.weight_sync.commands import main

sys.exit(main())
