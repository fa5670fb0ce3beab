"""Training of reward models: batches and losses in torch, the loop on DeepSpeed, the workers on Ray Train."""
