"""Where images come from: one loader per data set, what it needs on disk, and how it is fetched."""
