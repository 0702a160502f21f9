"""Videos: predictors, sessions, and the tracker between model and memory."""
