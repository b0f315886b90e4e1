"""How a layer's weights enter the Gram matrix: one rule per layer family."""
