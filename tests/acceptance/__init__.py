"""The promised figures, one check a row: `make acceptance AREA=first_light`."""
