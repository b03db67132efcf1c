"""What ``benchmarks.device`` starts on the machine with the accelerator, a process a measurement."""
