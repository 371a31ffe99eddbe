"""The colours of charts and pages: those of Okabe and Ito (2008), distinct under every common colour blindness."""

BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, YELLOW, PURPLE, GREY = "#56B4E9", "#F0E442", "#CC79A7", "#9AA0A6"
