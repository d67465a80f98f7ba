"""Load and chaos testing for LoRA hotfixes."""
