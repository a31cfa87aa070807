"""The parts of `benchmarks/faults.py`: what is injected, the processes it happens in, and who judges."""
