"""What a torch.profiler trace tells: each kernel's class by its name, its layer, its rate, and what to do."""
