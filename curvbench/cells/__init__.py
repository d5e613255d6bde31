"""How one cell becomes rows: what identifies it, its reference, its measurement or its training."""
