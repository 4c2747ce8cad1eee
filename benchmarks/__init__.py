"""Side-by-side measurements of what private training costs; each is a command."""
