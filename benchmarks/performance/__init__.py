"""scpo_ray beside its peers and beside what the machine can do; docs/performance.md has what was measured."""
