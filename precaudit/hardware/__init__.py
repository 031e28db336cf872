"""What is known of GPUs: their data sheets and generations, and what NVML tells of those in this machine."""
