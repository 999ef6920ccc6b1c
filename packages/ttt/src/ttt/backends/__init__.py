"""The backends that come with ttt; each module is imported only when its backend is used."""
