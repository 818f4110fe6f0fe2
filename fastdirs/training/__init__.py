"""Training a reconstructor, and the directions with it; `loop` is where to begin reading."""
