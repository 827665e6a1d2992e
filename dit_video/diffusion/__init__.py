"""The mathematics of Gaussian diffusion: knows no network, trainer or device."""
