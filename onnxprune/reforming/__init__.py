"""Choose edits and channels, apply and prove edits, and compare what comes of them."""
