"""Planning: dynamic programs that choose the K times of a grid with the least total cost."""
