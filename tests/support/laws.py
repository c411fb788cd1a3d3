"""How many examples a law is tried on: 1,000 in CI, 10,000 in the long form."""

import os

EXAMPLES = 10_000 if os.environ.get("ALPHALLOC_TEST_LONG") == "1" else 1_000
