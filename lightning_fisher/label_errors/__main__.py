"""``python -m lightning_fisher.label_errors``."""

import sys

from lightning_fisher.label_errors.command import main

sys.exit(main())
