"""The MoE-LoRA layer in plain torch: router, stacked experts, auxiliary losses and routing statistics."""
