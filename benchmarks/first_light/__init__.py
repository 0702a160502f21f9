"""The first minutes on a GPU: ten steps in the order of what they tell in a second. See
`__main__.py`."""
