"""Projects to start from: `shortlist init` copies `starter`, the demo copies `films`."""
