"""What a channel, or an edit of a layer, is worth. May import `calibration` and `surgery`."""
