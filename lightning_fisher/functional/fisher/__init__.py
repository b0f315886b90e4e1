"""γ̂ and its theory: log-determinants, spectra, bounds."""
