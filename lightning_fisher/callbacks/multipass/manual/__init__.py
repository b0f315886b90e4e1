"""Extra passes in manual optimization: up to the loss that is handed to `manual_backward`."""
