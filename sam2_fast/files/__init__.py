"""Files that appear whole or not at all, and pickles that cannot run code."""
