"""Problems: one file, one model with its data and loss. They never import each other."""
