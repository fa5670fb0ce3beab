"""Pure maths and statistics: no Ray, DeepSpeed, vLLM, I/O, clock or global randomness."""
