"""Images: the predictor, automatic masks, and their transforms."""
