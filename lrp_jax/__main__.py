"""`python -m lrp_jax` is the command `lrp-jax`."""

import sys

from lrp_jax.cli import main

sys.exit(main())
