"""Give layers another form: which taps, blocks of channels, directions and branches go, chosen by what the output loses per what they save."""
