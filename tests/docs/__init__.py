"""The documents are true: their commands run, their links lead somewhere, their names exist.

``pages`` reads Markdown, ``terminal`` runs commands as a reader would paste them.
"""
