"""The model under the official names, for programs that drive it themselves."""
