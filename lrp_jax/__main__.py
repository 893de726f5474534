"""`python -m lrp_jax` is the command `lrp-jax`."""

import sys

from lrp_jax_command import main

sys.exit(main())
