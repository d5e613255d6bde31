"""Problems: every file is one model with its data and loss. No problem imports another."""
