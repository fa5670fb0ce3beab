"""What was gained and what was lost: measures of a model on pairs, comparisons of models, matrices of communities."""
