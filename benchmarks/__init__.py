"""What anodejobs costs, each figure beside its floor or peer: ``python -m benchmarks``."""
