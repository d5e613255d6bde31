"""Exit codes of the command line."""

OK, REGRESSION, USAGE, SOME_FAILED, NOTHING_SUCCEEDED, INTERRUPTED = 0, 1, 2, 3, 4, 130
