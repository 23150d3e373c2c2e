"""From noise to latents: mask, conditioning, scheduler, sampling loop, windows per call."""
