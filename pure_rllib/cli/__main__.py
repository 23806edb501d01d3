"""`python -m pure_rllib.cli` is `pure-rllib`."""

import sys

from pure_rllib.cli.main import main

sys.exit(main())
