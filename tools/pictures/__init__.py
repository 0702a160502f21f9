"""Pictures of the documents: a chart of the results and four diagrams, as SVG for light and dark
pages. `python -m tools.pictures` writes them to docs/assets.
"""
