"""Side-by-side benchmarks: quadric, its peers and the machine's ceilings in one process."""
