"""Four diagrams: a video frame, the memory bank, automatic masks, the tiling of a kernel."""

from __future__ import annotations

from tools.pictures.style import Theme, arrow, box, cell, drawing, elbow, label


def frame_flow(theme: Theme) -> None:
    """How one video frame goes through the model."""
    with drawing("frame_flow", theme, 96, 34) as axes:
        box(axes, theme, (1, 20), (10, 7), "frame", "data")
        box(axes, theme, (16, 20), (15, 7), "image encoder", detail="Hiera + FPN")
        box(axes, theme, (37, 20), (16, 7), "memory attention", detail="4 layers, RoPE")
        box(axes, theme, (59, 20), (15, 7), "mask decoder", detail="two-way transformer")
        box(axes, theme, (80, 20), (15, 7), "mask", "data", detail="IoU, presence")
        box(axes, theme, (59, 29.5), (15, 4), "clicks, box, mask", "data")
        box(axes, theme, (59, 5), (15, 7), "memory encoder", detail="mask + features")
        box(
            axes,
            theme,
            (35, 5),
            (20, 7),
            "memory bank",
            "memory",
            detail="maps and object pointers",
        )
        for start, end in ((11, 16), (31, 37), (53, 59), (74, 80)):
            arrow(axes, theme, (start, 23.5), (end, 23.5))
        arrow(axes, theme, (66.5, 29.5), (66.5, 27))
        arrow(axes, theme, (87.5, 20), (74, 9.5), -0.25)
        arrow(axes, theme, (59, 8.5), (55, 8.5))
        arrow(axes, theme, (45, 12), (45, 20))
        elbow(axes, theme, [(23.5, 20), (23.5, 2), (66.5, 2), (66.5, 5)])
        label(axes, theme, (46, 15.8), "recall", muted=True, align="left", size=8)
        label(axes, theme, (88, 13), "mask, pointer", muted=True, size=8)
        label(axes, theme, (24.5, 9), "features", muted=True, align="left", size=8)
        label(
            axes,
            theme,
            (2, 30.5),
            "computed once per frame, shared by all objects",
            8,
            True,
            align="left",
        )
        arrow(axes, theme, (18, 29.5), (22, 27.2))


def memory_bank(theme: Theme) -> None:
    """Which frames a tracked frame attends to."""
    with drawing("memory_bank", theme, 96, 27) as axes:
        side = 3.4
        for index in range(26):
            x = 1.5 + index * (side + 0.2)
            age = 25 - index
            prompted = index == 2
            map_colour = theme.memory if prompted or 1 <= age <= 6 else "none"
            pointer_colour = theme.compute if prompted or 1 <= age <= 15 else "none"
            cell(axes, theme, (x, 12), (side, side), map_colour)
            cell(axes, theme, (x, 8), (side, side), pointer_colour)
            if age == 0:
                cell(axes, theme, (x, 8), (side, 2 * side + 0.6), theme.data, 1.2)
        centre = 1.5 + side / 2
        step = side + 0.2
        label(axes, theme, (centre + 2 * step, 18.5), "prompted frame:\nalways kept", 8)
        label(axes, theme, (centre + 21.5 * step, 18.5), "6 newest memory maps", 8)
        label(axes, theme, (centre + 13 * step, 5), "15 newest object pointers", 8)
        label(axes, theme, (centre + 25 * step, 5), "now", 8, weight="bold")
        label(axes, theme, (centre + 5.5 * step, 5), "out of reach: forgotten", 8, True)
        label(
            axes,
            theme,
            (1.5, 24.5),
            "What a tracked frame attends to",
            10,
            weight="bold",
            align="left",
        )
        label(
            axes,
            theme,
            (1.5, 1.5),
            "upper row: memory map, 64 x 64 tokens of 64 channels; "
            "lower row: object pointer, 256 channels",
            8,
            True,
            align="left",
        )


def automatic_masks(theme: Theme) -> None:
    """How the masks of a whole image are found."""
    with drawing("automatic_masks", theme, 96, 24) as axes:
        for row in range(6):
            for column in range(6):
                cell(axes, theme, (2 + 2.2 * column, 8.4 + 2.2 * row), (0.7, 0.7), theme.compute)
        cell(axes, theme, (1, 7.4), (13, 13), "none", 1.0)
        label(axes, theme, (7.5, 4.8), "grid of clicks", 8.5)
        box(axes, theme, (19, 10.5), (15, 7), "mask decoder", detail="batches, 3 masks a click")
        box(axes, theme, (39, 10.5), (17, 7), "judge", detail="IoU, stability, border")
        box(axes, theme, (61, 10.5), (13, 7), "duplicates", detail="boxes, NMS")
        box(axes, theme, (79, 10.5), (16, 7), "run lengths", "data", detail="COCO RLE, boxes")
        for start, end in ((14.5, 19), (34, 39), (56, 61), (74, 79)):
            arrow(axes, theme, (start, 14), (end, 14))
        label(axes, theme, (26.5, 7.5), "3072 masks, 256 x 256 logits", 8, True)
        label(axes, theme, (47.5, 7.5), "counted without\nfull-size masks", 8, True)
        label(axes, theme, (67.5, 7.5), "best first", 8, True)
        label(axes, theme, (87, 7.5), "only what is left\nleaves the device", 8, True)


def tiling(theme: Theme) -> None:
    """How the Hiera block keeps a tile in the cache of a core."""
    with drawing("tiling", theme, 96, 32) as axes:
        for row in range(8):
            for column in range(8):
                window = (row // 2, column // 2)
                colour = theme.compute if window == (2, 1) else "none"
                cell(axes, theme, (2 + 2.4 * column, 7 + 2.4 * row), (2.4, 2.4), colour, 0.4)
        for line in range(5):
            axes.plot([2, 21.2], [7 + 4.8 * line] * 2, color=theme.line, linewidth=1.6)
            axes.plot([2 + 4.8 * line] * 2, [7, 26.2], color=theme.line, linewidth=1.6)
        label(axes, theme, (11.6, 4.2), "tokens of the image, in windows", 8.5)
        label(axes, theme, (11.6, 29), "main memory", 9, weight="bold")
        arrow(axes, theme, (21.8, 19), (29, 19))
        label(axes, theme, (25.4, 21), "read once", 7.5, True)
        box(axes, theme, (29.5, 4.5), (48, 22.5), "", "data")
        label(axes, theme, (53.5, 29), "second-level cache of one core", 9, weight="bold")
        for index in range(6):
            cell(axes, theme, (32, 8.5 + 2.4 * index), (9, 2.4), theme.compute)
        label(axes, theme, (36.5, 24.6), "tile: 64 tokens", 8)
        label(axes, theme, (36.5, 6.3), "a channel is a row", 7.5, True)
        steps = (("norm, q k v", 44), ("attention", 55.5), ("MLP", 67))
        for text, x in steps:
            box(axes, theme, (x, 12.5), (9.5, 6), text, "memory")
        for start, end in ((41, 44), (53.5, 55.5), (65, 67)):
            arrow(axes, theme, (start, 15.5), (end, 15.5))
        label(axes, theme, (60, 9), "intermediate values never leave the cache", 8, True)
        arrow(axes, theme, (78, 15.5), (85, 15.5))
        label(axes, theme, (81.5, 17.5), "written\nonce", 7.5, True)
        for row in range(2):
            for column in range(2):
                cell(axes, theme, (86 + 3 * column, 12.5 + 3 * row), (3, 3), theme.compute)
        label(axes, theme, (89, 10), "the same window", 7.5, True)


DIAGRAMS = (frame_flow, memory_bank, automatic_masks, tiling)
