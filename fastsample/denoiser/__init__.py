"""The class `Denoiser` (a network and its conventions), conditions, and checks of both."""
