"""Public functions with several backends each, and the registry that chooses between them."""
