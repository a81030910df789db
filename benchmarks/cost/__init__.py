"""What low rank costs: seconds and bytes of layers, of models' steps, and of reaching a loss."""
