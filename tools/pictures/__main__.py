"""Write all pictures: `python -m tools.pictures`."""

from tools.pictures.chart import speed
from tools.pictures.diagrams import DIAGRAMS
from tools.pictures.style import FOLDER, THEMES

for theme in THEMES:
    for draw in (speed, *DIAGRAMS):
        draw(theme)
print(f"{2 * (len(DIAGRAMS) + 1)} pictures in {FOLDER}")
