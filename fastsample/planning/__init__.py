"""Dynamic programs that choose the times of a grid, and the step costs that they minimize."""
