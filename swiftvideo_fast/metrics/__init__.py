"""What is measured: distances between sets of clips, and figures of fidelity."""
