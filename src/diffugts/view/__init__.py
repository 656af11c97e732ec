"""A result in the browser: a page with NiiVue, and the small server that hands it out on loopback."""
