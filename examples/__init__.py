"""jaxdp on models of other packages, which are used as they are."""
