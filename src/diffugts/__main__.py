"""`python -m diffugts` is `diffugts`."""

from diffugts.cli import entry

entry()
