"""The benchmark: many cases, many methods, one protocol (`diffugts bench`)."""
