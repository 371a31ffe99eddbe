"""The colours of charts and pages: those of Okabe and Ito (2008), distinct under every common colour blindness."""

BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, YELLOW, PURPLE, GREY = "#56B4E9", "#F0E442", "#CC79A7", "#9AA0A6"

LIGHT = {
    "blue": BLUE,
    "vermilion": VERMILION,
    "green": GREEN,
    "orange": "#7A5200",
    "sky": "#389BD6",
    "purple": "#B0528A",
    "yellow": "#A89A00",
    "grey": "#80868B",
    "ink": "#202124",
    "blue-tint": "#99C6E3",
    "vermilion-tint": "#F3B58A",
    "blue-pale": "#E8F2F9",
    "vermilion-pale": "#FDF0E8",
    "muted": "#5F6368",
    "grid": "#E8EAED",
    "axis": "#9AA0A6",
    "page": "#F6F7F9",
    "card": "#FFFFFF",
    "edge": "#E3E6EA",
}
"""On white, by name: the same hues, made darker where those of Okabe and Ito would be too pale for a thin line. What a
line is drawn in has a contrast of 3 or more against its ground."""

DARK = {
    "blue": "#4BA3E3",
    "vermilion": "#F2783A",
    "green": "#25C79A",
    "orange": "#E9AE3F",
    "sky": "#9AD5F7",
    "purple": "#D070A8",
    "yellow": "#E6DC5A",
    "grey": "#9AA0A6",
    "ink": "#E8EAED",
    "blue-tint": "#2C5F85",
    "vermilion-tint": "#8A4A28",
    "blue-pale": "#1D2A35",
    "vermilion-pale": "#352419",
    "muted": "#A9B0B7",
    "grid": "#31363C",
    "axis": "#6B7278",
    "page": "#121518",
    "card": "#1B1F24",
    "edge": "#31363C",
}
"""The same on a dark page."""

CYCLE = ("blue", "vermilion", "green", "purple", "orange", "sky", "ink")
"""What groups of runs are drawn in, one after the other; with `DASHES` no two of the first 35 look alike."""

DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "13 4")
"""Dash patterns, as SVG writes them."""
