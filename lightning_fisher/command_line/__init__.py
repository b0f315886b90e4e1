"""What every command needs: signals that end it in one line, output that never does, mistakes in one line."""
