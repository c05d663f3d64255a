"""Named data sets and the user's own files, and the batches that training draws from them."""
