"""What every room uses: checks of arguments, files, tensors, processes."""
