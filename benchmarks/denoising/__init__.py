"""The three measurements of denoising: spectra, cost and training."""
